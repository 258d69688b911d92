"""The engines: they run programs on device memory and write private scratch, never device memory.

`job.py` is the interface towards the controller; `pool.py` runs engines as worker processes (`worker.py` is the
child, `messages.py` what passes between them), `inline.py` runs them in the caller, for deterministic tests.
`executor.py` runs one program's commands with the kernels of `kernels.py`. Read `job.py` first.
"""
