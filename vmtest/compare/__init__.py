"""What differs between outcomes, and which of that says something: rules as data, no I/O."""
