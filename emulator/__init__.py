"""The device in software: a PCI function as a state machine, and the server process that puts it on a socket.

Read `function/function.py` (what a host sees), `function/controller.py` (queues) and `function/jobs/` (what commands
do), then `chip/` (what is behind the function), `engines/` (programs in worker processes), `model/` (the chip as pure
functions) and `server/` (the bus). `build.py` puts a device together, `serve.py` serves it.
Imports only `driver_shim.protocol` and `driver_shim.shared`.
"""
