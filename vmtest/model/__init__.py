"""What machines, images and observations are: frozen data and tables. No I/O here."""
