"""The chip as pure functions and data: no processes, no sockets, no clocks but those handed in.

`profile.py` reads a chip's figures, `timing.py` turns work into ticks, `clock.py` keeps device time,
`golden/` says what each program command computes, `semantics.py` which operands it accepts (`shapes.py` holds the
rules of shapes), `work.py` what it asks of the hardware, `choices.py` names what a device can be started with.
"""
