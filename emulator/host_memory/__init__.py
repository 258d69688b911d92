"""The host's memory as the device reaches it: mappings, files behind them, accesses. Start with `address_space.py`."""
