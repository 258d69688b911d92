"""The chip as pure functions and data: no processes, no sockets, no clocks but those handed in.

`profile.py` reads a chip's figures, `timing.py` turns work into ticks, `clock.py` keeps device time,
`golden/` says what each program command computes.
"""
