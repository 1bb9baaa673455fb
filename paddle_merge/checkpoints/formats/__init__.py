"""One file per format of weights, with reading and writing side by side."""
