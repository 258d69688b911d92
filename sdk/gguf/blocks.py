"""How GGML lays out the blocks of each type, and what they are as unsigned integers with a scale for each block.

A weight is `scale · (code − centre) + offset`, where the centre of codes of n bits is 2ⁿ⁻¹, which ONNX's operators take
for granted. Where a type counts from another zero, or has fewer bits than are stored, its codes are shifted. A layout
is what its blocks hold one after the other, and a function that makes codes, scales and offsets of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Fields: TypeAlias = Mapping[str, Array]

_SUPERBLOCK = 256
"""Weights of a block of the K types, which is cut into blocks with scales of their own."""
_CHUNK = 128
"""Weights whose codes Q2_K, Q3_K and Q6_K interleave."""
_NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


class Quantised(NamedTuple):
    """The weights of a matrix."""

    codes: Array
    """uint8 [rows, columns]."""
    scales: Array
    """float32 [rows, blocks]."""
    offsets: Array | None
    """float32 [rows, blocks]; None where all are zero."""


class Layout(NamedTuple):
    """How a type is stored in a file, and how it is kept."""

    weights: int
    """Of a block as the file has it."""
    fields: tuple[tuple[str, str, int], ...]
    """Of such a block: name, NumPy's name of their type, how many."""
    bits: int
    """Of a code as it is kept."""
    block: int
    """Weights that share a scale."""
    read: Callable[[Fields, int], tuple[Array, Array, Array | None]]
    """Codes [blocks, weights] counted from `centre`, scales and offsets [blocks, blocks within them]."""

    @property
    def centre(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """A block as the file has it."""
        return np.dtype([(name, kind, (count,)) for name, kind, count in self.fields])


def quantised(kind: str, data: Array, columns: int) -> Quantised:
    """The rows of a matrix out of their bytes [rows, bytes]."""
    layout = LAYOUTS[kind]
    rows = len(data)
    stored = np.ascontiguousarray(data).view(layout.dtype).reshape(-1)
    codes, scales, offsets = layout.read({name: stored[name] for name, _, _ in layout.fields}, layout.centre)
    return Quantised(
        codes.astype(np.uint8).reshape(rows, columns),
        scales.astype(np.float32).reshape(rows, -1),
        None if offsets is None else offsets.astype(np.float32).reshape(rows, -1),
    )


# --- types with one scale a block -------------------------------------------------------------------------------------


def _real(values: Array) -> Array:
    return values.astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """The low nibbles of all bytes, then the high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _fifth_bits(fields: Fields) -> Array:
    """Bit i of 32 is the highest of weight i."""
    return np.unpackbits(fields["high"].view(np.uint8), axis=-1, bitorder="little") << 4


def _q4_0(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    return _nibbles(fields["codes"]), _real(fields["scale"]), None


def _q4_1(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    scale = _real(fields["scale"])
    return _nibbles(fields["codes"]), scale, _real(fields["minimum"]) + centre * scale


def _q5_0(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    codes = _nibbles(fields["codes"]) | _fifth_bits(fields)
    return codes + (centre - 16), _real(fields["scale"]), None


def _q5_1(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    codes = _nibbles(fields["codes"]) | _fifth_bits(fields)
    return codes + centre, _real(fields["scale"]), _real(fields["minimum"])


def _q8_0(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    return fields["codes"].astype(np.int16) + centre, _real(fields["scale"]), None


def _iq4_nl(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    return _NONLINEAR[_nibbles(fields["codes"])] + centre, _real(fields["scale"]), None


# --- types with scales of scales --------------------------------------------------------------------------------------


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minimums of 6 bits out of the 12 bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=-1)
    minimums = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=-1)
    return scales, minimums


def _with_minimums(fields: Fields) -> tuple[Array, Array]:
    """Scales and offsets of the eight blocks of Q4_K and Q5_K."""
    scales, minimums = _six_bits(fields["scales"])
    return _real(fields["scale"]) * scales, -(_real(fields["minimum"]) * minimums)


def _nibbles_by(packed: Array, run: int) -> Array:
    """The low nibbles of `run` bytes, then the high ones, then those of the next bytes."""
    return _nibbles(packed.reshape(len(packed), -1, run)).reshape(len(packed), -1)


def _crumbs(packed: Array) -> Array:
    """Two bits a weight: those lowest in 32 bytes make 32 weights, the next two bits 32 more."""
    parts = packed.reshape(len(packed), -1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (parts & 3).reshape(len(packed), _SUPERBLOCK)


def _planes(packed: Array) -> Array:
    """One bit a weight: the lowest of 32 bytes make 32 weights, the next ones 32 more."""
    return (packed[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(len(packed), _SUPERBLOCK)


def _q2_k(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    packed = fields["scales"]
    scales, minimums = _real(fields["scale"]) * (packed & 15), _real(fields["minimum"]) * (packed >> 4)
    return _crumbs(fields["codes"]) + centre, scales, -minimums


def _q3_k(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    packed = fields["scales"]
    low = _nibbles(packed[:, :8])
    high = packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scales = (low | high.reshape(len(packed), -1) << 4).astype(np.int16) - 32
    codes = _crumbs(fields["codes"]) | _planes(fields["high"]) << 2
    return codes + (centre - 4), _real(fields["scale"]) * scales, None


def _q4_k(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    scales, offsets = _with_minimums(fields)
    return _nibbles_by(fields["codes"], 32), scales, offsets + centre * scales


def _q5_k(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    scales, offsets = _with_minimums(fields)
    return (_nibbles_by(fields["codes"], 32) | _planes(fields["high"]) << 4) + centre, scales, offsets


def _q6_k(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    codes = _nibbles_by(fields["codes"], _CHUNK // 2) | _crumbs(fields["high"]) << 4
    return codes + (centre - 32), _real(fields["scale"]) * fields["scales"], None


def _iq4_xs(fields: Fields, centre: int) -> tuple[Array, Array, Array | None]:
    low = fields["low"][..., None] >> np.array([0, 4], np.uint8) & 15
    high = fields["high"] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low.reshape(len(low), -1) | high << 4).astype(np.int16) - 32
    return _NONLINEAR[_nibbles_by(fields["codes"], 16)] + centre, _real(fields["scale"]) * scales, None


_SCALE, _MINIMUM = ("scale", "<f2", 1), ("minimum", "<f2", 1)
_NIBBLES, _NIBBLES_K = ("codes", "u1", 16), ("codes", "u1", 128)

LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(32, (_SCALE, _NIBBLES), 4, 32, _q4_0),
    "Q4_1": Layout(32, (_SCALE, _MINIMUM, _NIBBLES), 4, 32, _q4_1),
    "Q5_0": Layout(32, (_SCALE, ("high", "u1", 4), _NIBBLES), 8, 32, _q5_0),
    "Q5_1": Layout(32, (_SCALE, _MINIMUM, ("high", "u1", 4), _NIBBLES), 8, 32, _q5_1),
    "Q8_0": Layout(32, (_SCALE, ("codes", "i1", 32)), 8, 32, _q8_0),
    "Q2_K": Layout(_SUPERBLOCK, (("scales", "u1", 16), ("codes", "u1", 64), _SCALE, _MINIMUM), 4, 16, _q2_k),
    "Q3_K": Layout(_SUPERBLOCK, (("high", "u1", 32), ("codes", "u1", 64), ("scales", "u1", 12), _SCALE), 4, 16, _q3_k),
    "Q4_K": Layout(_SUPERBLOCK, (_SCALE, _MINIMUM, ("scales", "u1", 12), _NIBBLES_K), 4, 32, _q4_k),
    "Q5_K": Layout(_SUPERBLOCK, (_SCALE, _MINIMUM, ("scales", "u1", 12), ("high", "u1", 32), _NIBBLES_K), 8, 32, _q5_k),
    "Q6_K": Layout(_SUPERBLOCK, (_NIBBLES_K, ("high", "u1", 64), ("scales", "i1", 16), _SCALE), 8, 16, _q6_k),
    "IQ4_NL": Layout(32, (_SCALE, _NIBBLES), 8, 32, _iq4_nl),
    "IQ4_XS": Layout(_SUPERBLOCK, (_SCALE, ("high", "<u2", 1), ("low", "u1", 4), _NIBBLES_K), 8, 32, _iq4_xs),
}
"""Types by the names that GGML has for them."""
