"""Queues, batches and events. Start with `queue.py`, then `completions.py` and `events.py`."""
