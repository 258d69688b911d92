"""One PCI function: registers, BARs, queues and their commands. Start with `function.py`, then `controller.py`.

A state machine without thread or socket; `server/` puts it on a socket. Imports go one way: `function.py` puts together
the BARs (`blocks/`, `control.py`, `doorbells.py`, `aperture.py`) and the command processor (`controller.py`); that uses
`admin.py` and `jobs/`, and those `queue_table.py`, `programs.py` and `records.py`. Below all of them is the chip
(`emulator/chip/`).
"""
