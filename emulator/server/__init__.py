"""The server that puts a PCI function on a UNIX socket, speaking vfio-user 0.0. One thread, one client at a time.

Read `vfio_user.py` (the event loop), `dispatch.py` (what each message does), then `connection.py` (a client's socket),
`newcomers.py` (until a client has negotiated), `remote_memory.py` (DMA by message) and `listener.py` (socket files).
`function_port.py` is all they know of the function.
"""
