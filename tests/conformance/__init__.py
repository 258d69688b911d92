"""ONNX's own backend suite on the device: `make conformance`, or `pytest tests/conformance -k Resize` for an operator.

`cases.py` has the cases, `excluded.py` which of them are no demand on the device, `refused.txt` those that it refuses
so far, `table.py` counts. `--on in-process` runs them without an emulator process, `--kernels` says on which kernels.
`--write` takes what passes by now off refused.txt and, after a run of all cases, writes docs/conformance.md.
"""
