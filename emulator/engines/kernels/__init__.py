"""Kernels: what runs a command on the host. `choice.py` asks the providers in turn.

A provider prepares a kernel for one command, once, with the constants at hand; it may pack weights then. All must equal
golden: integers to the bit, floats within the tolerances of `tests/unit/emulator/engines/kernels/test_kernels.py`.
`blocks.py` has convolutions pass intermediates on in the layout that their kernels compute in.
"""
