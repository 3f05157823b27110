"""Which files and columns make a data set; placeholder until the reader lands."""
