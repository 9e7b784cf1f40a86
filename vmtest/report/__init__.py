"""What people read: progress, tables and reports."""
