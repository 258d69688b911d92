"""Stable kebab-case names of numbers, as error codes, logs and JSON show them."""

from __future__ import annotations

import enum


def slug(member: enum.Enum) -> str:
    """Of a member: "bad-signature"."""
    return str(member.name).lower().replace("_", "-")


def slug_of(kind: type[enum.IntEnum], value: int, otherwise: str) -> str:
    """Of a number; `otherwise` for one that this version does not know."""
    try:
        return slug(kind(value))
    except ValueError:
        return otherwise
