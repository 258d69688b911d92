"""What is raised for a state folder that cannot be used."""

from __future__ import annotations


class StateError(Exception):
    """The state folder cannot be used; says why and what to do."""
