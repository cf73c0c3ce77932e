"""What games between two policies say, and how surely: numbers in, numbers out."""
