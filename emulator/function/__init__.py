"""One PCI function: registers, BARs, queues and their commands. Start with `function.py`, then `controller.py`.

A state machine without thread or socket; `server/` puts it on a socket.
"""
