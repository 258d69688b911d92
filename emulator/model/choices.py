"""The choices that whoever starts an emulated device has, beside its profile."""

from __future__ import annotations

KERNELS = ("auto", "numpy", "golden")
"""`golden`: reference kernels; `numpy`: fast kernels of numpy; `auto`: the device's choice, so far those of numpy."""
CORES = ("auto", "none")
"""`auto`: a management core, where what it needs is installed; `none`: none."""
