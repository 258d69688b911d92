"""Every fixed-size structure that the protocol declares, found by walking its modules, and values for them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

import driver_shim.protocol
from driver_shim.protocol.layout import FieldSpec, Layout


def every_layout() -> dict[str, Layout]:
    """All layouts reachable from the globals of the package's modules, by "module.name"."""
    found: dict[int, tuple[str, Layout]] = {}
    for module in pkgutil.iter_modules(driver_shim.protocol.__path__):
        loaded = importlib.import_module(f"driver_shim.protocol.{module.name}")
        for layout in _layouts_in(vars(loaded).values()):
            found.setdefault(id(layout), (f"{module.name}.{layout.name}", layout))
    return dict(found.values())


def _layouts_in(values: Iterable[Any], depth: int = 3) -> Iterable[Layout]:
    """Layouts among values and, `depth` containers deep, inside them."""
    for value in values:
        if isinstance(value, Layout):
            yield value
        elif depth and isinstance(value, dict):
            yield from _layouts_in(value.values(), depth - 1)
        elif depth and isinstance(value, (tuple, list)):
            yield from _layouts_in(value, depth - 1)


def bounds(spec: FieldSpec) -> tuple[int, int]:
    """Smallest and largest value of one element of an integer field."""
    if spec.format[-1].islower():
        return -(1 << spec.bits - 1), (1 << spec.bits - 1) - 1
    return 0, (1 << spec.bits) - 1


def is_bytes(spec: FieldSpec) -> bool:
    """Whether the field is an opaque byte string."""
    return spec.format.endswith("s")


def is_float(spec: FieldSpec) -> bool:
    """Whether the field holds floating-point numbers."""
    return spec.format[-1] in "efd"


def field_values(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """Any value that fits the field."""
    if is_bytes(spec):
        return st.binary(min_size=spec.size, max_size=spec.size)
    element: st.SearchStrategy[Any]
    if is_float(spec):
        element = st.floats(width=32, allow_nan=False)
    else:
        low, high = bounds(spec)
        element = st.one_of(st.integers(low, high), st.sampled_from((low, high, 0)))
    if spec.elements == 1:
        return element
    return st.lists(element, min_size=spec.elements, max_size=spec.elements)


def values_of(layout: Layout) -> st.SearchStrategy[dict[str, Any]]:
    """A value for every field of a layout."""
    return st.fixed_dictionaries({name: field_values(spec) for name, spec in layout.fields.items()})
