"""What leaves the device while nothing needs it; what a process on the CPU keeps (`heap.py`)."""
