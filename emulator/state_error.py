"""The error of a state folder that cannot be used; alone here, because whoever catches it may need nothing else."""

from __future__ import annotations


class StateError(Exception):
    """The state folder cannot be used; says why and what to do."""
