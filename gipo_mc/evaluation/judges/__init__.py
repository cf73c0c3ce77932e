"""Judges: what they are asked, how their answers are read, and the journal that keeps them."""
