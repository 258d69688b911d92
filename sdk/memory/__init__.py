"""Buffers of the host and of the device. Start with `buffers.py`."""
