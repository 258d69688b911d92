"""Random small graphs of the operators that can be compiled, with data that every engine computes nearly alike.

A graph grows node by node. Each node is tried at once, by itself, on golden kernels; it stays when the compiler takes
it and its results are finite and modest. What jumps (Floor, Less, ArgMax, Cast to integers, …) reads only values that
are exact, so that the last bit of an engine's arithmetic never decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from emulator.engines.job import ProgramFault
from sdk.compiler import compile_model
from tests.support.models import model, node
from tests.support.programs import run

Array = NDArray[Any]
OPSET = 20
F32 = np.float32
FLOATS, WHOLE = ("float32",), ("int8", "uint8", "int32", "int64")
ANY = (*FLOATS, *WHOLE, "bool")
LARGEST = 1000.0
"""Magnitude of results that are kept."""
MOST_ELEMENTS = 4096
EXACT_STEP = 8
"""Exact floats are multiples of one over this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph, with the data it has."""

    name: str
    array: Array
    exact: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.array.ndim


class Draft(NamedTuple):
    """A node to be: its operands are values of the graph or constants of its own."""

    op: str
    operands: Sequence[Tensor | Array]
    attributes: Mapping[str, Any] = {}
    outputs: int = 1


class Step(NamedTuple):
    """A node of the graph, what it read and what golden kernels made of it by itself."""

    proto: onnx.NodeProto
    constants: Mapping[str, Array]
    given: Mapping[str, Array]
    results: Mapping[str, Array]


class Graph:
    """A graph as it grows."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs: dict[str, Array] = {}
        self.steps: list[Step] = []
        self._tensors: list[Tensor] = []
        for index in range(self.random.integers(1, 4)):
            array = self._data(ANY if index else FLOATS)
            self.inputs[f"x{index}"] = array
            self._tensors.append(Tensor(f"x{index}", array, exact=True))

    # --- what recipes draw -----------------------------------------------------------------------------------------

    def below(self, limit: int, least: int = 0) -> int:
        """A whole number from `least` to below `limit`."""
        return int(self.random.integers(least, max(limit, least + 1)))

    def choice(self, values: Sequence[Any]) -> Any:
        """One of some values."""
        return values[self.below(len(values))]

    def pick(
        self, kinds: Iterable[str] = FLOATS, *, rank: int = 0, exact: bool = False, filled: bool = False
    ) -> Tensor | None:
        """A value of one of these types, of `rank` or more; None when there is none."""
        fitting = [
            tensor
            for tensor in self._tensors
            if tensor.array.dtype.name in kinds
            and tensor.rank >= rank
            and (tensor.exact or not exact)
            and (tensor.array.size or not filled)
        ]
        return self.choice(fitting) if fitting else None

    def like(self, tensor: Tensor, *, least: float | None = None) -> Tensor | Array:
        """Something of the same type that broadcasts with a value: another value, or a constant."""
        others = [
            other
            for other in self._tensors
            if other.array.dtype == tensor.array.dtype and _broadcasts(other.shape, tensor.shape) and least is None
        ]
        if others and self.below(2):
            chosen: Tensor = self.choice(others)
            return chosen
        shape = [extent if self.below(2) else 1 for extent in tensor.shape[self.below(tensor.rank + 1) :]]
        return self.constant(shape, tensor.array.dtype, least)

    def constant(self, shape: Sequence[int], dtype: Any = F32, least: float | None = None) -> Array:
        """Exact numbers: small whole ones, or fractions; none below `least`."""
        kind = np.dtype(dtype).kind
        if kind == "b":
            return self.random.integers(0, 2, shape).astype(bool)
        if kind == "f":
            low = -2 * EXACT_STEP if least is None else int(least * EXACT_STEP)
            return (self.random.integers(low, 2 * EXACT_STEP + 1, shape) / EXACT_STEP).astype(dtype)
        low = (0 if kind == "u" else -4) if least is None else int(least)
        return self.random.integers(low, 5, shape).astype(dtype)

    def _data(self, kinds: Sequence[str]) -> Array:
        extents = [1, 1, 2, 2, 3, 3, 4, 5, *([0] if not self.below(6) else [])]
        shape = [self.choice(extents) for _ in range(self.choice([0, 1, 2, 2, 3, 3, 4, 4]))]
        return self.constant(shape, self.choice(kinds))

    # --- growing ---------------------------------------------------------------------------------------------------

    def grow(self, recipe: Recipe) -> bool:
        """Add the node that a recipe makes; False when it makes none here, or none that stays."""
        draft = recipe.make(self)
        if draft is None:
            return False
        step, read = self._step(draft)
        try:
            results = run(compile_model(single(step), shapes_of(step.given)), step.given)
        except (UnsupportedModel, ProgramFault):
            return False
        if not all(map(_is_modest, results.values())):
            return False
        exact = all(tensor.exact for tensor in read)
        for name in step.proto.output:
            array = results[name]
            kept = exact and (array.dtype.kind != "f" or (recipe.is_exact and _is_exact(array)))
            self._tensors.append(Tensor(name, array, exact=kept))
        self.steps.append(step._replace(results=results))
        return True

    def _step(self, draft: Draft) -> tuple[Step, list[Tensor]]:
        position = len(self.steps)
        names, constants, read = [], {}, []
        for index, operand in enumerate(draft.operands):
            if isinstance(operand, Tensor):
                names.append(operand.name)
                read.append(operand)
            else:
                names.append(f"c{position}_{index}")
                constants[names[-1]] = operand
        outputs = [f"y{position}_{index}" for index in range(draft.outputs)]
        proto = node(draft.op, names, outputs, **draft.attributes)
        return Step(proto, constants, {tensor.name: tensor.array for tensor in read}, {}), read

    def expected(self, count: int | None = None) -> dict[str, Array]:
        """What the first `count` nodes, or all, give and none of them reads: the outputs, computed node by node."""
        steps = self.steps[:count]
        read = {name for step in steps for name in step.proto.input}
        return {name: array for step in steps for name, array in step.results.items() if name not in read}

    def model(self, count: int | None = None) -> onnx.ModelProto:
        """The whole graph, or its first `count` nodes."""
        steps = self.steps[:count]
        constants = {name: array for step in steps for name, array in step.constants.items()}
        outputs = {name: array.dtype for name, array in self.expected(count).items()}
        return _model([step.proto for step in steps], self.inputs, outputs, constants)


def single(step: Step) -> onnx.ModelProto:
    """A model of one node of a graph."""
    outputs = {name: step.results[name].dtype if name in step.results else None for name in step.proto.output}
    return _model([step.proto], step.given, outputs, step.constants)


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Their shapes, as `compile_model` takes them."""
    return {name: array.shape for name, array in arrays.items()}


def _model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Array], outputs: Mapping[str, Any], constants: Any
) -> onnx.ModelProto:
    """A model whose inputs' extents are open, since a fixed one of 0 stands for an open one too."""
    declared = {name: (array.dtype, [f"{name}.{axis}" for axis in range(array.ndim)]) for name, array in inputs.items()}
    made = model(nodes, declared, {name: dtype for name, dtype in outputs.items() if dtype}, constants, OPSET)
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name, dtype in outputs.items() if dtype is None)
    return made


def _broadcasts(shape: Sequence[int], other: Sequence[int]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(shape[::-1], other[::-1], strict=False))


def _is_modest(array: Array) -> bool:
    wide = array.astype(np.float64)
    return array.size <= MOST_ELEMENTS and bool(np.all(np.isfinite(wide)) and np.all(np.abs(wide) <= LARGEST))


def _is_exact(array: Array) -> bool:
    """Whether floats are so few bits that sums and products of a few of them are exact, too."""
    scaled = array.astype(np.float64) * EXACT_STEP * EXACT_STEP
    return bool(np.all(scaled == np.rint(scaled)))


# --- recipes --------------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """How to make a node of some operator out of a graph's values."""

    name: str
    make: Callable[[Graph], Draft | None]
    is_exact: bool = False
    """Whether float results of exact operands are exact."""


def _unary(op: str, kinds: Sequence[str] = FLOATS, *, exact: bool = False, **attributes: Any) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = graph.pick(kinds, exact=exact)
        return Draft(op, [x], attributes) if x is not None else None

    return Recipe(op, make, is_exact=exact)


def _binary(op: str, kinds: Sequence[str], *, exact: bool = False, least: float | None = None) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = graph.pick(kinds, exact=exact)
        if x is None:
            return None
        other = graph.like(x, least=least)
        if exact and isinstance(other, Tensor) and not other.exact:
            return None
        attributes = {"fmod": 1} if op == "Mod" and x.array.dtype.kind == "f" else {}
        operands = [x, other] if least is not None or graph.below(2) else [other, x]
        return Draft(op, operands, attributes)

    return Recipe(op, make, is_exact=True)


def _reduce(op: str) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = graph.pick((*FLOATS, "int32", "int64") if op in _WHOLE_REDUCTIONS else FLOATS, filled=True)
        if x is None:
            return None
        axes = [axis for axis in range(x.rank) if graph.below(2)]
        given: list[Tensor | Array] = [x, np.array(axes, np.int64)] if axes or graph.below(2) else [x]
        if op != "ReduceSum" and len(given) == 2 and not axes:
            given = [x]
        return Draft(op, given, {"keepdims": graph.below(2)})

    return Recipe(op, make)


_WHOLE_REDUCTIONS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")


def _along(op: str, kinds: Sequence[str] = FLOATS, *, exact: bool = False, **flags: int) -> Recipe:
    """Operators that work along an axis; `flags` are attributes below these numbers."""

    def make(graph: Graph) -> Draft | None:
        x = graph.pick(kinds, rank=1, exact=exact, filled=True)
        if x is None:
            return None
        drawn = {name: graph.below(limit) for name, limit in flags.items()}
        return Draft(op, [x], {"axis": graph.below(x.rank, -x.rank), **drawn})

    return Recipe(op, make, is_exact=True)


def _cast(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, exact=True)
    if x is None:
        return None
    target = np.dtype(graph.choice(ANY))
    if target.kind == "u" and x.array.size and x.array.min() < 0:
        return None
    return Draft("Cast", [x], {"to": onnx.helper.np_dtype_to_tensor_dtype(target)})


def _where(graph: Graph) -> Draft | None:
    condition, x = graph.pick(("bool",)), graph.pick(ANY)
    if condition is None or x is None or not _broadcasts(condition.shape, x.shape):
        return None
    if condition.name == x.name:  # onnxruntime loses a Not before such a Where
        return None
    return Draft("Where", [condition, x, graph.constant([1] * x.rank, x.array.dtype)])


def _clip(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"))
    if x is None:
        return None
    low, high = np.sort(graph.constant([2], x.array.dtype))
    return Draft("Clip", [x, np.asarray(low), np.asarray(high)])


def _pow(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"))
    return Draft("Pow", [x, np.array(graph.choice([1, 2, 3]), x.array.dtype)]) if x is not None else None


def _transpose(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=2)
    return Draft("Transpose", [x], {"perm": graph.random.permutation(x.rank).tolist()}) if x is not None else None


def _reshape(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, filled=True)
    if x is None:
        return None
    extents: list[int] = []
    rest = x.array.size
    while rest > 1 and len(extents) < 4:
        extent = graph.choice([e for e in range(1, rest + 1) if rest % e == 0])
        extents, rest = [*extents, extent], rest // extent
    extents.append(-1 if graph.below(2) else rest)
    return Draft("Reshape", [x, np.array(extents, np.int64)])


def _flatten(graph: Graph) -> Draft | None:
    x = graph.pick(ANY)
    return Draft("Flatten", [x], {"axis": graph.below(x.rank + 1)}) if x is not None else None


def _unsqueeze(graph: Graph) -> Draft | None:
    x = graph.pick(ANY)
    if x is None or x.rank > 4:
        return None
    return Draft("Unsqueeze", [x, np.array([graph.below(x.rank + 1, -x.rank - 1)], np.int64)])


def _squeeze(graph: Graph) -> Draft | None:
    x = graph.pick(ANY)
    if x is None or 1 not in x.shape:
        return None
    return Draft("Squeeze", [x, np.array([x.shape.index(1)], np.int64)])


def _slice(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1)
    if x is None:
        return None
    axes = np.array(sorted({graph.below(x.rank) for _ in range(2)}), np.int64)
    starts, ends = (np.array([graph.below(7, -7) for _ in axes], np.int64) for _ in range(2))
    steps = np.array([graph.choice([-2, -1, 1, 1, 2]) for _ in axes], np.int64)
    return Draft("Slice", [x, starts, ends, axes, steps])


def _split(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1)
    if x is None:
        return None
    axis = graph.below(x.rank)
    first = graph.below(x.shape[axis] + 1)
    return Draft("Split", [x, np.array([first, x.shape[axis] - first], np.int64)], {"axis": axis}, 2)


def _concat(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1)
    if x is None:
        return None
    axis = graph.below(x.rank)
    shape = [graph.below(3) if i == axis else extent for i, extent in enumerate(x.shape)]
    operands: list[Tensor | Array] = [x, graph.constant(shape, x.array.dtype), x]
    return Draft("Concat", operands[graph.below(2) :], {"axis": axis})


def _indices(graph: Graph, extent: int, shape: Sequence[int]) -> Array:
    return graph.random.integers(-extent, extent, shape)


def _gather(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1, filled=True)
    if x is None:
        return None
    axis = graph.below(x.rank)
    indices = _indices(graph, x.shape[axis], [graph.below(4) for _ in range(graph.below(3))])
    return Draft("Gather", [x, np.asarray(indices, np.int64)], {"axis": axis})


def _gather_elements(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1, filled=True)
    if x is None:
        return None
    axis = graph.below(x.rank)
    shape = [graph.below(4) if i == axis else extent for i, extent in enumerate(x.shape)]
    return Draft("GatherElements", [x, _indices(graph, x.shape[axis], shape)], {"axis": axis})


def _gather_nd(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=2, filled=True)
    if x is None:
        return None
    batch = graph.below(2)
    rows = [*x.shape[:batch], graph.below(4)]
    depth = graph.below(x.rank - batch + 1, 1)
    columns = [_indices(graph, x.shape[batch + i], rows) for i in range(depth)]
    return Draft("GatherND", [x, np.stack(columns, -1)], {"batch_dims": batch})


def _scatter_elements(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1, filled=True)
    if x is None:
        return None
    axis, how = graph.below(x.rank), graph.choice(["none", "add", "mul", "max", "min"])
    shape = [1 if i == axis else extent for i, extent in enumerate(x.shape)]
    updates = graph.constant(shape, x.array.dtype)
    return Draft(
        "ScatterElements", [x, _indices(graph, x.shape[axis], shape), updates], {"axis": axis, "reduction": how}
    )


def _scatter_nd(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1, filled=True)
    if x is None:
        return None
    how = graph.choice(["none", "add", "mul", "max", "min"])
    rows = graph.random.permutation(x.shape[0])[: graph.below(x.shape[0] + 1)].reshape(-1, 1)
    updates = graph.constant([len(rows), *x.shape[1:]], x.array.dtype)
    return Draft("ScatterND", [x, rows, updates], {"reduction": how})


def _topk(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1, exact=True, filled=True)
    if x is None:
        return None
    axis = graph.below(x.rank)
    k = np.array([graph.below(x.shape[axis] + 1, 1)], np.int64)
    return Draft("TopK", [x, k], {"axis": axis, "largest": graph.below(2)}, 2)


def _cumsum(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1)
    if x is None:
        return None
    flags = {"exclusive": graph.below(2), "reverse": graph.below(2)}
    return Draft("CumSum", [x, np.array(graph.below(x.rank, -x.rank), np.int64)], flags)


def _pad(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1, filled=True)
    if x is None:
        return None
    mode = graph.choice(["constant", "edge", "wrap", "reflect"])
    limit = 1 if mode == "constant" else 0
    pads = [graph.below(min(3, extent + limit)) for extent in (*x.shape, *x.shape)]
    return Draft("Pad", [x, np.array(pads, np.int64)], {"mode": mode})


def _expand(graph: Graph) -> Draft | None:
    x = graph.pick(ANY)
    if x is None or x.rank > 4:
        return None
    shape = [graph.below(3, 1) if extent == 1 else extent for extent in x.shape]
    return Draft("Expand", [x, np.array([graph.below(3, 1), *shape], np.int64)])


def _tile(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1)
    return Draft("Tile", [x, graph.random.integers(0, 3, x.rank)]) if x is not None else None


def _trilu(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int64"), rank=2)
    return Draft("Trilu", [x, np.array(graph.below(4, -3), np.int64)], {"upper": graph.below(2)}) if x else None


def _one_hot(graph: Graph) -> Draft | None:
    x = graph.pick(("int32", "int64"), rank=1)  # onnxruntime takes no scalar
    if x is None or x.rank > 4:
        return None
    return Draft("OneHot", [x, np.array([4], np.int64), graph.constant([2])], {"axis": graph.below(x.rank + 1)})


def _compress(graph: Graph) -> Draft | None:
    x = graph.pick(ANY, rank=1)
    if x is None:
        return None
    axis = graph.below(x.rank)
    return Draft("Compress", [x, graph.constant([x.shape[axis]], bool)], {"axis": axis})


def _reverse_sequence(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int64"), rank=2, filled=True)
    if x is None:
        return None
    lengths = graph.random.integers(1, x.shape[0] + 1, x.shape[1])
    return Draft("ReverseSequence", [x, lengths], {"batch_axis": 1, "time_axis": 0})


def _matmul(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32"), rank=1)
    if x is None:
        return None
    return Draft("MatMul", [x, graph.constant([x.shape[-1], graph.below(5, 1)], x.array.dtype)])


def _gemm(graph: Graph) -> Draft | None:
    x = graph.pick(rank=2)
    if x is None or x.rank != 2:
        return None
    flip, columns = graph.below(2), graph.below(5, 1)
    w = graph.constant([columns, x.shape[1 - flip]])
    extra = [graph.constant([columns])] if graph.below(2) else []
    return Draft("Gemm", [x, w, *extra], {"transA": flip, "transB": 1, "alpha": graph.choice([1.0, 0.5])})


def _image(graph: Graph) -> Tensor | None:
    x = graph.pick(rank=3, filled=True)
    return x if x is not None and x.rank in (3, 4) else None


def _conv(graph: Graph) -> Draft | None:
    x = _image(graph)
    if x is None:
        return None
    spatial = x.rank - 2
    kernel = [graph.below(min(3, extent) + 1, 1) for extent in x.shape[2:]]
    filters = graph.below(4, 1)
    operands: list[Tensor | Array] = [x, graph.constant([filters, x.shape[1], *kernel])]
    if graph.below(2):
        operands.append(graph.constant([filters]))
    pads = [graph.below(2) for _ in range(2 * spatial)]
    return Draft("Conv", operands, {"pads": pads, "strides": [graph.below(3, 1) for _ in range(spatial)]})


def _conv_transpose(graph: Graph) -> Draft | None:
    x = _image(graph)
    if x is None:
        return None
    spatial = x.rank - 2
    weights = graph.constant([x.shape[1], graph.below(4, 1), *[graph.below(4, 2) for _ in range(spatial)]])
    return Draft("ConvTranspose", [x, weights], {"strides": [graph.below(3, 1) for _ in range(spatial)]})


def _pool(op: str) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = _image(graph)
        if x is None:
            return None
        kernel = [graph.below(min(3, extent) + 1, 1) for extent in x.shape[2:]]
        return Draft(op, [x], {"kernel_shape": kernel, "strides": [graph.below(3, 1) for _ in kernel]})

    return Recipe(op, make, is_exact=op == "MaxPool")


def _normalisation(op: str) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = _image(graph)
        if x is None:
            return None
        channels = [x.shape[1]]
        statistics = [graph.constant(channels), graph.constant(channels, least=0.5)]
        extra = statistics if op == "BatchNormalization" else []
        return Draft(op, [x, graph.constant(channels), graph.constant(channels), *extra], {"epsilon": 0.5})

    return Recipe(op, make)


def _layer_normalisation(graph: Graph) -> Draft | None:
    x = graph.pick(rank=1, filled=True)
    if x is None:
        return None
    return Draft("LayerNormalization", [x, graph.constant(x.shape[-1:])], {"epsilon": 0.5})


def _resize(graph: Graph) -> Draft | None:
    x = _image(graph)
    if x is None:
        return None
    mode = graph.choice(["nearest", "linear"])
    scales = np.array([1, 1, *[graph.choice([1, 2, 3]) for _ in x.shape[2:]]], F32)
    nothing = np.zeros(0, F32)
    return Draft("Resize", [x, nothing, scales], {"mode": mode})


def _quantise(graph: Graph) -> Draft | None:
    x = graph.pick(exact=True)
    return Draft("QuantizeLinear", [x, np.array(0.25, F32), np.array(3, np.uint8)]) if x is not None else None


def _dequantise(graph: Graph) -> Draft | None:
    x = graph.pick(("uint8", "int8"))
    if x is None:
        return None
    return Draft("DequantizeLinear", [x, np.array(0.5, F32), np.array(1, x.array.dtype)])


def _dropout(graph: Graph) -> Draft | None:
    x = graph.pick()
    return Draft("Dropout", [x], {}, 2) if x is not None else None


def _shape(graph: Graph) -> Draft | None:
    x = graph.pick(ANY)
    return Draft(graph.choice(["Shape", "Size"]), [x]) if x is not None else None


def _global_pool(op: str) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = _image(graph)
        return Draft(op, [x]) if x is not None else None

    return Recipe(op, make)


def _lp_normalisation(graph: Graph) -> Draft | None:
    x = graph.pick(rank=1, filled=True)
    return Draft("LpNormalization", [x], {"axis": graph.below(x.rank), "p": graph.below(3, 1)}) if x else None


def _recurrent(op: str, gates: int) -> Recipe:
    def make(graph: Graph) -> Draft | None:
        x = graph.pick(rank=3, filled=True)
        if x is None or x.rank != 3:
            return None
        hidden, direction = graph.below(4, 1), graph.choice(["forward", "reverse", "bidirectional"])
        directions = 2 if direction == "bidirectional" else 1
        weights = [graph.constant([directions, gates * hidden, size]) / F32(4) for size in (x.shape[2], hidden)]
        bias = [graph.constant([directions, 2 * gates * hidden])] if graph.below(2) else []
        return Draft(op, [x, *weights, *bias], {"hidden_size": hidden, "direction": direction}, 2)

    return Recipe(op, make)


def _matmul_integer(graph: Graph) -> Draft | None:
    x = graph.pick(("uint8", "int8"), rank=2)
    if x is None:
        return None
    zero = np.array(graph.below(4), x.array.dtype)
    return Draft("MatMulInteger", [x, graph.constant([x.shape[-1], graph.below(5, 1)], np.uint8), zero])


def _grid_sample(graph: Graph) -> Draft | None:
    x = graph.pick(rank=4, filled=True)
    if x is None or x.rank != 4:
        return None
    grid = graph.constant([x.shape[0], graph.below(4, 1), graph.below(4, 1), 2])
    padding = graph.choice(["zeros", "border", "reflection"])
    return Draft("GridSample", [x, grid], {"mode": "linear", "padding_mode": padding, "align_corners": graph.below(2)})


def _bit_shift(graph: Graph) -> Draft | None:
    x = graph.pick(("uint8",))
    if x is None:
        return None
    return Draft("BitShift", [x, graph.constant([], np.uint8)], {"direction": graph.choice(["LEFT", "RIGHT"])})


def _center_crop_pad(graph: Graph) -> Draft | None:
    x = graph.pick((*FLOATS, "int32", "int64"), rank=1)
    if x is None:
        return None
    return Draft("CenterCropPad", [x, graph.random.integers(1, 6, x.rank)])


_NUMBERS = (*FLOATS, *WHOLE)
_SIGNED = (*FLOATS, "int8", "int32", "int64")
_SMOOTH = (
    *("Exp", "Tanh", "Sigmoid", "Erf", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Sin", "Cos", "Sqrt", "Atan"),
    *("Asinh", "Softsign", "Gelu", "HardSwish", "Mish", "Selu", "Celu", "Log", "Reciprocal", "Sinh", "Asin"),
)

RECIPES: tuple[Recipe, ...] = (
    *(_unary(op) for op in _SMOOTH),
    *(_unary(op, exact=True) for op in ("Floor", "Ceil", "Round", "ThresholdedRelu", "Shrink", "IsNaN", "IsInf")),
    *(_unary(op, _SIGNED, exact=True) for op in ("Abs", "Neg", "Sign")),
    _unary("Relu", (*FLOATS, "int32")),
    _unary("Not", ("bool",)),
    _unary("BitwiseNot", WHOLE),
    _unary("Identity", ANY),
    *(_binary(op, _NUMBERS) for op in ("Add", "Sub", "Mul", "Max", "Min")),
    *(_binary(op, FLOATS) for op in ("Sum", "Mean", "PRelu")),
    _binary("Div", _NUMBERS, least=1),
    _binary("Mod", _NUMBERS, exact=True, least=1),
    *(_binary(op, _NUMBERS, exact=True) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")),
    *(_binary(op, ("bool",)) for op in ("And", "Or", "Xor")),
    *(_binary(op, WHOLE) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Recipe("Cast", _cast, is_exact=True),
    Recipe("Where", _where, is_exact=True),
    Recipe("Clip", _clip, is_exact=True),
    Recipe("Pow", _pow),
    *map(_reduce, (*_WHOLE_REDUCTIONS, "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")),
    *(_along(op, _NUMBERS, exact=True, keepdims=2, select_last_index=2) for op in ("ArgMax", "ArgMin")),
    *(_along(op) for op in ("Softmax", "LogSoftmax")),
    _along("Hardmax", exact=True),
    Recipe("Transpose", _transpose, is_exact=True),
    Recipe("Reshape", _reshape, is_exact=True),
    Recipe("Flatten", _flatten, is_exact=True),
    Recipe("Unsqueeze", _unsqueeze, is_exact=True),
    Recipe("Squeeze", _squeeze, is_exact=True),
    Recipe("Slice", _slice, is_exact=True),
    Recipe("Split", _split, is_exact=True),
    Recipe("Concat", _concat, is_exact=True),
    Recipe("Gather", _gather, is_exact=True),
    Recipe("GatherElements", _gather_elements, is_exact=True),
    Recipe("GatherND", _gather_nd, is_exact=True),
    Recipe("ScatterElements", _scatter_elements, is_exact=True),
    Recipe("ScatterND", _scatter_nd, is_exact=True),
    Recipe("TopK", _topk, is_exact=True),
    Recipe("CumSum", _cumsum, is_exact=True),
    Recipe("Pad", _pad, is_exact=True),
    Recipe("Expand", _expand, is_exact=True),
    Recipe("Tile", _tile, is_exact=True),
    Recipe("Trilu", _trilu, is_exact=True),
    Recipe("OneHot", _one_hot, is_exact=True),
    Recipe("Compress", _compress, is_exact=True),
    Recipe("ReverseSequence", _reverse_sequence, is_exact=True),
    Recipe("MatMul", _matmul, is_exact=True),
    Recipe("Gemm", _gemm, is_exact=True),
    Recipe("Conv", _conv, is_exact=True),
    Recipe("ConvTranspose", _conv_transpose, is_exact=True),
    _pool("MaxPool"),
    _pool("AveragePool"),
    _normalisation("BatchNormalization"),
    _normalisation("InstanceNormalization"),
    *map(_global_pool, ("GlobalAveragePool", "GlobalMaxPool")),
    _pool("LpPool"),
    Recipe("LpNormalization", _lp_normalisation),
    _recurrent("RNN", 1),
    _recurrent("GRU", 3),
    _recurrent("LSTM", 4),
    Recipe("MatMulInteger", _matmul_integer),
    Recipe("GridSample", _grid_sample),
    Recipe("BitShift", _bit_shift),
    Recipe("CenterCropPad", _center_crop_pad, is_exact=True),
    Recipe("LayerNormalization", _layer_normalisation),
    Recipe("Resize", _resize),
    Recipe("QuantizeLinear", _quantise),
    Recipe("DequantizeLinear", _dequantise, is_exact=True),
    Recipe("Dropout", _dropout, is_exact=True),
    Recipe("Shape", _shape),
)


def random_graph(seed: int, recipes: Sequence[Recipe] = RECIPES, nodes: int = 8, attempts: int = 60) -> Graph:
    """The graph of a seed: always the same."""
    graph = Graph(seed)
    for _ in range(attempts):
        if len(graph.steps) == nodes:
            break
        graph.grow(graph.choice(recipes))
    return graph
