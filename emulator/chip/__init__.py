"""The chip behind the function: device memory, engines, time, counters, and records that survive resets.

`chip.py` owns them all.
"""
