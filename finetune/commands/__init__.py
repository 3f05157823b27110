"""What the command line does, as functions: each returns the object that the command prints."""
