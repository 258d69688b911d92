"""The silicon around the hart: boot ROM, flash, recovery, peripherals. Start with `core.py`."""
