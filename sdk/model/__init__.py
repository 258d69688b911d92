"""Models on a device.

`model.py` is what applications hold: `device_model.py` runs all of it on the device, `mixed.py` some of it on the host.
A device's model has programs by the shapes of their inputs (`keyed_programs.py`), of which the device holds as many as
it takes (`programs.py`), its weights (`weights.py`), and lanes that its runs work in (`lane_set.py`, `lanes.py`).
Read `device_model.py` first, then `lanes.py`.
"""
