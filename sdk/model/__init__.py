"""Models on a device: `model.py` holds `Model`, which compiles per shape and runs; `programs.py` one run's buffers."""
