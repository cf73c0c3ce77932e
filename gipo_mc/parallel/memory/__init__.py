"""What leaves the device while nothing needs it."""
