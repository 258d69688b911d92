"""Models on a device: `session.py` holds `Model`, which compiles per shape and runs; `runs.py` one run's buffers."""
