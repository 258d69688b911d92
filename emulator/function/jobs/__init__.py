"""I/O commands that take more than one slice: one module a command, `job.py` for what they have in common."""
