"""The core's process and the wires to it. Start with `core_process.py` (our side) and `serve.py` (its side)."""
