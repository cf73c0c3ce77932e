"""What a learned reward takes that a function does not: a level to compare with, second opinions, and doubts."""
