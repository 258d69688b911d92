"""The device in software: a PCI function as a state machine, and the server process that puts it on a socket.

Read `function.py` (what a host sees), `controller.py` (queues), `jobs.py` (what commands do), then `engines/`
(programs in worker processes), `model/` (the chip as pure functions) and `server/` (the bus).
Imports only `driver_shim.protocol`.
"""
