"""The card's USB debug port as a state machine without socket: what it answers to each control transfer.

Begin with `device.py`; `descriptors.py` is what it looks like, `dfu.py` takes images in recovery mode, and
`register_requests.py` reaches BAR0. `emulator/server/usbip.py` puts it on a socket.
"""
