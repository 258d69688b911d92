"""The README's commands on a machine that has nothing: `make test-fresh`.

`__main__.py` makes the machine, a tree of Debian's packages, and runs the commands there; `namespace.py` is what of it
runs inside; `pip_sources.py` tells the machine where this one gets Python packages from.
"""
