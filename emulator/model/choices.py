"""The choices that whoever starts an emulated device has, beside its profile."""

from __future__ import annotations

KERNELS = ("auto", "numpy", "golden")
"""`golden`: reference kernels; `numpy`: faster ones of numpy where there are; `auto`: onnxruntime's, one for one
command, where it is installed, else those of numpy."""
CORES = ("auto", "none")
"""`auto`: a management core, where what it needs is installed; `none`: none."""
