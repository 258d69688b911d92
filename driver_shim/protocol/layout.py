"""Fixed-size structures: declared once with Construct, encoded fast by codecs derived from it.

A `Layout` is the only way this project describes bytes of a known size. Its declaration is a
Construct `Struct`; the `struct.Struct` and the numpy dtype used on hot paths are derived by
walking that declaration, so the three cannot disagree. Sizes are checked at import.
"""

from __future__ import annotations

import functools
import numbers
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import construct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

u8 = construct.Int8ul
u16 = construct.Int16ul
u32 = construct.Int32ul
u64 = construct.Int64ul
i32 = construct.Int32sl
i64 = construct.Int64sl
f32 = construct.Float32l
u16be = construct.Int16ub
u32be = construct.Int32ub
i32be = construct.Int32sb
"""For protocols that are big-endian; no structure mixes the two."""


class LayoutError(Exception):
    """A declaration is wrong (sizes do not add up, unsupported field kind). Raised at import."""


class FieldError(ValueError):
    """A value does not fit its field; the message names structure, field, width and value."""


class FieldSpec(NamedTuple):
    """One named field of a layout, as derived from its Construct declaration."""

    name: str
    offset: int
    format: str
    """`struct` format without byte order: "B", "16s", "4I"."""
    size: int
    elements: int
    """1 for a scalar or a byte string, n for an array of n numbers."""

    @property
    def bits(self) -> int:
        """Width of one element in bits."""
        return 8 * self.size // self.elements


def reserved(size: int) -> Any:
    """`size` bytes that must be zero; they have no name; `Layout.reserved_clear` checks them."""
    return construct.Padding(size)


def raw(size: int) -> Any:
    """`size` opaque bytes (shorter values are padded with zeros on the right when built)."""
    return construct.Bytes(size)


def array(count: int, element: Any) -> Any:
    """`count` numbers of one kind."""
    return construct.Array(count, element)


def _field_of(subcon: Any, offset: int, owner: str) -> FieldSpec | None:
    """Derive the hot-path view of one Construct field; None for reserved bytes."""
    name = subcon.name
    inner = subcon.subcon if isinstance(subcon, construct.Renamed) else subcon
    if name is None:
        return None
    if isinstance(inner, construct.FormatField):
        return FieldSpec(name, offset, inner.fmtstr[1:], inner.sizeof(), 1)
    if isinstance(inner, construct.Bytes):
        return FieldSpec(name, offset, f"{inner.length}s", inner.length, 1)
    if isinstance(inner, construct.Array) and isinstance(inner.subcon, construct.FormatField):
        code = inner.subcon.fmtstr[1:]
        return FieldSpec(name, offset, f"{inner.count}{code}", inner.sizeof(), inner.count)
    raise LayoutError(f"{owner}.{name}: {type(inner).__name__} has no fixed hot-path form")


def _byte_order(fields: Iterable[Any], owner: str) -> str:
    """`struct`'s sign for the order that all numbers of more than one byte share."""
    orders = set()
    for subcon in fields:
        inner = subcon.subcon if isinstance(subcon, construct.Renamed) else subcon
        number = inner.subcon if isinstance(inner, construct.Array) else inner
        if isinstance(number, construct.FormatField) and number.sizeof() > 1:
            orders.add(number.fmtstr[0])
    if len(orders) > 1:
        raise LayoutError(f"{owner}: mixes little-endian and big-endian fields")
    return orders.pop() if orders else "<"


class Layout:
    """A structure of exactly `size` bytes, little-endian unless its fields are declared otherwise.

    `build`/`parse` go through Construct and check everything; `pack`/`unpack_from` and `dtype` are the
    derived hot-path forms (tests prove them equal). Values that do not fit raise `FieldError`.
    """

    def __init__(self, name: str, size: int, *fields: Any) -> None:
        self.name = name
        self.size = size
        self.construct = construct.Struct(*fields)
        specs: list[FieldSpec] = []
        offset = 0
        order = _byte_order(self.construct.subcons, name)
        formats = [order]
        gaps: list[slice] = []
        for subcon in self.construct.subcons:
            width = subcon.sizeof()
            spec = _field_of(subcon, offset, name)
            if spec is None:
                formats.append(f"{width}x")
                gaps.append(slice(offset, offset + width))
            else:
                specs.append(spec)
                formats.append(spec.format)
            offset += width
        if offset != size:
            raise LayoutError(f"{name}: fields add up to {offset} bytes, declared {size}")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise LayoutError(f"{name}: duplicate field name in {names}")
        self.fields: dict[str, FieldSpec] = {spec.name: spec for spec in specs}
        self.codec = struct.Struct("".join(formats))
        self._gaps = tuple((gap, bytes(gap.stop - gap.start)) for gap in gaps)
        self._byte_order = order

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        """numpy's view of it."""
        return layout_dtype(self.size, list(self.fields.values()), self._byte_order)

    def __repr__(self) -> str:
        return f"Layout({self.name!r}, {self.size})"

    def offset_of(self, field: str) -> int:
        """Byte offset of `field`. Raises KeyError for an unknown name."""
        return self.fields[field].offset

    def build(self, **values: Any) -> bytes:
        """Encode through Construct; missing fields are zero. Raises FieldError, naming the field."""
        unknown = values.keys() - self.fields.keys()
        if unknown:
            raise FieldError(f"{self.name} has no field {sorted(unknown)[0]!r}; it has {', '.join(self.fields)}")
        complete: dict[str, Any] = {}
        for name, spec in self.fields.items():
            complete[name] = self._checked(spec, values.get(name))
        return bytes(self.construct.build(complete))

    def parse(self, data: bytes | bytearray | memoryview) -> Any:
        """Decode through Construct into a Container. Raises FieldError on a wrong length."""
        if len(data) != self.size:
            raise FieldError(f"{self.name} is {self.size} bytes, got {len(data)}")
        return self.construct.parse(bytes(data))

    def pack(self, *values: Any) -> bytes:
        """Encode fields in declaration order (arrays flattened); the hot-path twin of `build`."""
        try:
            return self.codec.pack(*values)
        except struct.error:
            self._explain(values)
            raise

    def pack_into(self, buffer: Any, offset: int, *values: Any) -> None:
        """`pack` into a writable buffer (ordinary memory only, never MMIO: it stores byte by byte)."""
        try:
            self.codec.pack_into(buffer, offset, *values)
        except struct.error:
            self._explain(values)
            raise

    def reserved_clear(self, data: bytes) -> bool:
        """Whether every reserved byte of an encoded structure is zero."""
        return all(data[gap] == zeros for gap, zeros in self._gaps)

    def unpack_from(self, buffer: Any, offset: int = 0) -> tuple[Any, ...]:
        """Decode into a flat tuple in declaration order; the hot-path twin of `parse`."""
        return self.codec.unpack_from(buffer, offset)

    def view(self, buffer: Any, offset: int = 0, count: int = 1) -> NDArray[Any]:
        """A zero-copy structured array of `count` structures over `buffer`."""
        import numpy as np

        return np.frombuffer(buffer, dtype=self.dtype, count=count, offset=offset)

    def _checked(self, spec: FieldSpec, value: Any) -> Any:
        is_bytes = spec.format.endswith("s")
        if value is None:
            return bytes(spec.size) if is_bytes else [0] * spec.elements if spec.elements > 1 else 0
        if is_bytes:
            if not isinstance(value, (bytes, bytearray)) or len(value) > spec.size:
                raise FieldError(f"{self.name}.{spec.name}: {value!r} does not fit {spec.size} bytes")
            return bytes(value).ljust(spec.size, b"\0")
        elements = list(value) if spec.elements > 1 else [value]
        if len(elements) != spec.elements:
            raise FieldError(f"{self.name}.{spec.name}: expected {spec.elements} values, got {len(elements)}")
        for element in elements:
            self._check_number(spec, element)
        return elements if spec.elements > 1 else elements[0]

    def _check_number(self, spec: FieldSpec, value: Any) -> None:
        code = spec.format[-1]
        if code in "fd":
            return
        low, high = (-(1 << spec.bits - 1), (1 << spec.bits - 1) - 1) if code.islower() else (0, (1 << spec.bits) - 1)
        if not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
            raise FieldError(f"{self.name}.{spec.name}: {value!r} does not fit {spec.bits} bits ({low}..{high})")

    def _explain(self, values: tuple[Any, ...]) -> None:
        """Turn a `struct.error` into a FieldError that names the field."""
        flat = iter(values)
        for spec in self.fields.values():
            taken = [next(flat, None) for _ in range(spec.elements)]
            if None in taken:
                raise FieldError(f"{self.name}.{spec.name}: no value given")
            self._checked(spec, taken if spec.elements > 1 else taken[0])


def layout_dtype(size: int, specs: list[FieldSpec], byte_order: str = "<") -> np.dtype[Any]:
    """The numpy structured dtype with these fields at these offsets, `size` bytes in all."""
    import numpy as np  # slow, and not everybody who declares structures views arrays of them

    return np.dtype(
        {
            "names": [spec.name for spec in specs],
            "formats": [_numpy_code(spec, byte_order) for spec in specs],
            "offsets": [spec.offset for spec in specs],
            "itemsize": size,
        }
    )


def _numpy_code(spec: FieldSpec, byte_order: str) -> Any:
    """numpy's spelling of a field: struct's "I" is "<u4", an array "(n,)<u4", bytes "Vn"."""
    code = spec.format[-1]
    if code == "s":
        return f"V{spec.size}"
    width = spec.size // spec.elements
    kind = "f" if code in "efd" else "i" if code.islower() else "u"
    scalar = f"{byte_order}{kind}{width}"
    return (scalar, (spec.elements,)) if spec.elements > 1 else scalar


def union_dtype(size: int, layouts: list[Layout]) -> np.dtype[Any]:
    """One dtype with every field of several layouts of the same size.

    Fields of one name must be the same field (offset and format), else LayoutError; so a name means
    one place in every command.
    """
    merged: dict[str, FieldSpec] = {}
    for layout in layouts:
        if layout.size != size:
            raise LayoutError(f"{layout.name} is {layout.size} bytes, the union {size}")
        for name, spec in layout.fields.items():
            if merged.setdefault(name, spec) != spec:
                raise LayoutError(f"{layout.name}.{name} disagrees with its namesake: {spec} / {merged[name]}")
    return layout_dtype(size, sorted(merged.values(), key=lambda spec: spec.offset))
