"""The device in software: a PCI function as a state machine, and the server process that puts it on a socket.

Read `function/function.py` (what a host sees), `function/controller.py` (queues) and `function/jobs.py` (what commands
do), then `engines/` (programs in worker processes), `model/` (the chip as pure functions) and `server/` (the bus).
Imports only `driver_shim.protocol` and `driver_shim.shared`.
"""
