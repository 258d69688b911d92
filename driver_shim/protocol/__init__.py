"""Every byte that crosses the bus, declared once with Construct. Facts only: no I/O, no policy.

Read `layout.py` (how structures are declared), then `registers.py` and `commands.py` (the device contract),
`ring.py` and `fences.py` (how both sides share queue memory), `program.py` (compiled models), `image.py` (firmware),
`config_space.py` (PCI), `vfio_user.py` (the emulator's bus messages).
"""
