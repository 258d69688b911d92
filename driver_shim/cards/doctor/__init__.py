"""Checks of the machine and of each card, and what mends what they find. Start with `examination.py`."""
