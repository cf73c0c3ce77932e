"""What a job of several hosts (machines, or containers with a network of their own) needs beyond collectives: that they
meet, are alike, see one run folder, and notice within seconds that one of them is cut off."""
