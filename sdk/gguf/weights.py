"""The tensors of a file as constants, and what is computed of them: products, rows of an embedding, vectors.

Quantised matrices stay so: a product is onnxruntime's MatMulNBits, rows are its GatherBlockQuantized, over one and the
same constants where an embedding is also the last product. Offsets of blocks, which types with minimums have, go
separately: the offset of a block times the sum of the data it meets. onnxruntime has no fast product with zero points
that are no whole numbers, and none at all of 8 bits; for devices one is made of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.gguf.blocks import LAYOUTS, quantised
from sdk.gguf.file import FLOATS, GgufFile, StoredTensor
from sdk.gguf.graph import CONTRIB, ELEMENT_TYPES, Graph

_KNOWN = ", ".join([*FLOATS, *LAYOUTS])


class _Packed(NamedTuple):
    """The constants of a quantised matrix, by name."""

    codes: str
    scales: str
    offsets: str | None
    rows: int
    columns: int
    bits: int
    block: int


class Weights:
    """The tensors of a file, put into a graph when they are used, once `check` has accepted them."""

    def __init__(self, file: GgufFile, graph: Graph, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._graph = graph
        self._dtype = dtype
        self._packed: dict[str, _Packed] = {}

    def check(self, expected: dict[str, tuple[int, ...]], optional: dict[str, tuple[int, ...]]) -> None:
        """Refuse a file whose tensors are not those expected, of these shapes, and perhaps the optional ones."""
        tensors = self._file.tensors
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise self._file.refusal(f"it lacks the tensor {_named(missing)}", "download it again, or convert it again")
        foreign = [name for name in tensors if name not in expected and name not in optional]
        if foreign:
            raise self._file.refusal(f"it has a tensor that its architecture does not: {_named(foreign)}")
        for name, shape in {**expected, **optional}.items():
            if name in tensors:
                self._check_one(tensors[name], shape)

    def _check_one(self, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        if tensor.kind not in FLOATS and tensor.kind not in LAYOUTS:
            raise self._file.refusal(
                f"the tensor {tensor.name} is of type {tensor.kind}; {_KNOWN} are supported",
                "take the file that is quantised to one of those",
            )
        if tensor.shape != shape:
            raise self._file.refusal(f"the tensor {tensor.name} is {list(tensor.shape)}, must be {list(shape)}")
        if tensor.kind in LAYOUTS and len(shape) != 2:
            raise self._file.refusal(f"the tensor {tensor.name} is of type {tensor.kind}, must be of floats")

    def has(self, name: str) -> bool:
        """Whether the file has a tensor."""
        return name in self._file.tensors

    def array(self, name: str) -> NDArray[Any]:
        """The values of a tensor of floats."""
        return _data(self._file.tensors[name])

    def floats(self, name: str) -> str:
        """A tensor of floats, in the type that is computed in."""
        constant = self._graph.constant(name, self.array(name))
        return self._converted(constant, self.array(name).dtype)

    def _converted(self, value: str, dtype: np.dtype[Any]) -> str:
        if dtype == self._dtype:
            return value
        return self._graph.node("Cast", [value], f"{value}.converted", to=ELEMENT_TYPES[self._dtype])

    # --- products -----------------------------------------------------------------------------------------------------

    def products(self, x: str, names: Sequence[str]) -> list[str]:
        """x times several matrices, each plus its bias where it has one."""
        sums: dict[int, str] = {}
        return [self._biased(self._product(x, name, sums), name) for name in names]

    def _product(self, x: str, name: str, sums: dict[int, str]) -> str:
        """x · Wᵀ. `sums` are those of x by blocks, by the size of a block."""
        graph, tensor = self._graph, self._file.tensors[f"{name}.weight"]
        if tensor.kind in FLOATS:
            transposed = graph.node("Transpose", [self.floats(tensor.name)], f"{name}.t", perm=[1, 0])
            return graph.node("MatMul", [x, transposed], name)
        packed = self._pack(tensor)
        attributes = {"K": packed.columns, "N": packed.rows, "bits": packed.bits, "block_size": packed.block}
        inputs = [x, packed.codes, packed.scales]
        if packed.offsets is None:
            return graph.node("MatMulNBits", inputs, name, CONTRIB, **attributes)
        if packed.block not in sums:
            shape = graph.whole_numbers(0, 0, -1, packed.block)
            blocks = graph.node("Reshape", [x, shape], f"{x}.blocks")
            axes = graph.whole_numbers(-1)
            sums[packed.block] = graph.node("ReduceSum", [blocks, axes], f"{x}.sums", keepdims=0)
        scaled = graph.node("MatMulNBits", inputs, f"{name}.scaled", CONTRIB, **attributes)
        offsets = graph.node("Transpose", [packed.offsets], f"{name}.offsets", perm=[1, 0])
        offset = graph.node("MatMul", [sums[packed.block], offsets], f"{name}.offset")
        return graph.node("Add", [scaled, offset], name)

    def _biased(self, product: str, name: str) -> str:
        bias = f"{name}.bias"
        if not self.has(bias):
            return product
        return self._graph.node("Add", [product, self.floats(bias)], f"{name}.biased")

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def rows(self, name: str, indices: str) -> str:
        """Rows of a matrix, by their numbers [batch, tokens]."""
        graph, tensor = self._graph, self._file.tensors[f"{name}.weight"]
        if tensor.kind in FLOATS:
            stored = graph.constant(tensor.name, self.array(tensor.name))
            taken = graph.node("Gather", [stored, indices], name, axis=0)
            return self._converted(taken, self.array(tensor.name).dtype)
        packed = self._pack(tensor)
        flat = graph.node("Reshape", [packed.codes, graph.whole_numbers(0, -1)], f"{name}.rows")
        attributes = {"bits": packed.bits, "block_size": packed.block, "gather_axis": 0, "quantize_axis": 1}
        taken = graph.node("GatherBlockQuantized", [flat, indices, packed.scales], name, CONTRIB, **attributes)
        if packed.offsets is None:
            return taken
        offsets = graph.node("Gather", [packed.offsets, indices], f"{name}.offsets", axis=0)
        column = graph.node("Unsqueeze", [offsets, graph.whole_numbers(-1)], f"{name}.offsets.column")
        blocks = graph.node("Reshape", [taken, graph.whole_numbers(0, 0, -1, packed.block)], f"{name}.blocks")
        shifted = graph.node("Add", [blocks, column], f"{name}.shifted")
        return graph.node("Reshape", [shifted, graph.whole_numbers(0, 0, packed.columns)], f"{name}.whole")

    def _pack(self, tensor: StoredTensor) -> _Packed:
        """A quantised matrix as the operators take it; those of one tensor are one."""
        if tensor.name not in self._packed:
            layout, (rows, columns) = LAYOUTS[tensor.kind], tensor.shape
            codes, scales, offsets = quantised(tensor.kind, _data(tensor), columns)
            if layout.bits == 4:
                codes = codes[:, ::2] | codes[:, 1::2] << 4
            constant, dtype = self._graph.constant, self._dtype
            self._packed[tensor.name] = _Packed(
                constant(tensor.name, codes.reshape(rows, columns // layout.block, -1)),
                constant(f"{tensor.name}.scales", scales.astype(dtype)),
                None if offsets is None else constant(f"{tensor.name}.offsets", offsets.astype(dtype)),
                rows,
                columns,
                layout.bits,
                layout.block,
            )
        return self._packed[tensor.name]


def _data(tensor: StoredTensor) -> NDArray[Any]:
    """The data of a tensor that has been checked, and so is of a known type."""
    if tensor.data is None:
        raise ValueError(f"the tensor {tensor.name} has not been checked")
    return tensor.data


def _named(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] + (f", and {more} more" if more else "")
