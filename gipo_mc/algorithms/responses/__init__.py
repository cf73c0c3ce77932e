"""What the responses of a batch look like as texts: which are alike, how much they repeat, which refuse."""
