"""Checking a model's results against a peer in a process of its own. Start with `peer_process.py`."""
