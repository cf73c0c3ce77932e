"""What stands between the matrix products of a layer, in float32 on the CPU: attention, norms, gates.

`reference.py` holds their eager definitions, which are also what runs on other devices and types.
"""
