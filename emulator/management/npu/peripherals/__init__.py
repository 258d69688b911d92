"""The management core's own peripherals; their registers are in `driver_shim/protocol/management_registers.py`."""
