"""The firmware's answers: mailbox, calls, and what registers tell of the management core. Start with `calls.py`."""
