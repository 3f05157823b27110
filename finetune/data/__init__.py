"""Reading, checking, encoding and batching of text data."""
