"""Small seeded decoders in the forms in which models keep states, and their programs run over caches in process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from driver_shim.protocol.program import align_up
from sdk.compiler import CompiledProgram, compile_model
from sdk.compiler.states import ROWS, TABLES, StateLayout
from tests.support.programs import execute

Array = NDArray[Any]
F32, I64 = np.float32, np.int64
FLOAT, INT64, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32


class Size(NamedTuple):
    """Of a decoder."""

    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    size: int = 8
    """Of a head."""
    words: int = 31
    context: int = 64

    @property
    def width(self) -> int:
        """Of a token between layers."""
        return self.heads * self.size


class Shape(NamedTuple):
    """An input or output."""

    name: str
    type: int
    shape: list[int | str] | None


class Decoder:
    """A decoder written node by node, around the attention that a form gives it."""

    opset = 24
    prefix, suffix = "past_key_values", "present"

    def __init__(self, size: Size | None = None, seed: int = 0) -> None:
        self.size = size or Size()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[Shape] = [Shape("input_ids", INT64, ["batch", "tokens"])]
        self.outputs: list[Shape] = [Shape("logits", FLOAT, None)]
        self._random = np.random.default_rng(seed)

    # --- writing a graph ------------------------------------------------------------------------------------------

    def node(self, op: str, *operands: str | Array, outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """A node; returns its first output."""
        names = [operand if isinstance(operand, str) else self.constant(operand) for operand in operands]
        results = list(outputs) if outputs is not None else [f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, names, results, name=f"node{len(self.nodes)}", **attributes))
        return results[0]

    def constant(self, array: Array) -> str:
        """An initialiser."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def weight(self, *shape: int) -> Array:
        """A seeded matrix."""
        matrix: Array = (self._random.standard_normal(shape) / np.sqrt(shape[0])).astype(F32)
        return matrix

    def model(self) -> onnx.ModelProto:
        """The whole decoder."""
        size = self.size
        hidden = self.node("Gather", self.weight(size.words, size.width), "input_ids")
        self.begin()
        for layer in range(size.layers):
            normal = self.node("RMSNormalization", hidden, np.ones(size.width, F32))
            query, key, value = (
                self.node("MatMul", normal, self.weight(size.width, heads * size.size))
                for heads in (size.heads, size.key_heads, size.key_heads)
            )
            attended = self.attention(layer, query, key, value)
            hidden = self.node("Add", hidden, self.node("MatMul", attended, self.weight(size.width, size.width)))
            inner = self.node("Tanh", self.node("MatMul", hidden, self.weight(size.width, 2 * size.width)))
            hidden = self.node("Add", hidden, self.node("MatMul", inner, self.weight(2 * size.width, size.width)))
        self.node("MatMul", hidden, self.weight(size.width, size.words), outputs=["logits"])
        return self.finished()

    def finished(self) -> onnx.ModelProto:
        """What was written as a model."""
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [helper.make_tensor_value_info(*entry) for entry in self.inputs],
            [helper.make_tensor_value_info(*entry) for entry in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def state(self, layer: int, part: str, length: int | str, present: int | str | None = None) -> tuple[str, str]:
        """A pair's names."""
        past, after = f"{self.prefix}.{layer}.{part}", f"{self.suffix}.{layer}.{part}"
        heads, size = self.size.key_heads, self.size.size
        self.inputs.append(Shape(past, FLOAT, ["batch", heads, length, size]))
        self.outputs.append(Shape(after, FLOAT, ["batch", heads, length if present is None else present, size]))
        return past, after

    def apart(self, x: str, heads: int) -> str:
        """[batch, tokens, heads · size] as [batch, heads, tokens, size]."""
        shape = np.array([0, 0, heads, self.size.size], I64)
        return self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])

    def beside(self, x: str) -> str:
        """[batch, heads, tokens, size] as [batch, tokens, heads · size]."""
        return self.node("Reshape", self.node("Transpose", x, perm=[0, 2, 1, 3]), np.array([0, 0, -1], I64))

    def tokens(self) -> str:
        """How many tokens a step has: int64[1]."""
        return self.node("Shape", "input_ids", start=1, end=2)

    def angles(self) -> tuple[Array, Array]:
        """Cosines and sines of a rotary embedding."""
        half = self.size.size // 2
        turns = np.arange(self.size.context)[:, None] / 10 ** (np.arange(half) / half)
        return np.cos(turns).astype(F32), np.sin(turns).astype(F32)

    # --- forms ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write what all layers read."""

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        """Write the attention of one layer."""
        raise NotImplementedError


class Scattering(Decoder):
    """TensorScatter and Attention with counts of valid keys; places follow from where tokens are written."""

    def begin(self) -> None:
        self.inputs += [Shape("write_indices", INT64, ["batch"]), Shape("nonpad_kv_seqlen", INT64, ["batch"])]
        count = self.node("Squeeze", self.tokens())
        steps = self.node("Range", np.array(0, I64), count, np.array(1, I64))
        first = self.node("Unsqueeze", "write_indices", np.array([1], I64))
        self.places = self.node("Add", first, steps)
        self.cosines, self.sines = map(self.constant, self.angles())

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        turned = [
            self.node("RotaryEmbedding", self.apart(x, heads), self.cosines, self.sines, self.places)
            for x, heads in ((query, self.size.heads), (key, self.size.key_heads))
        ]
        presents = []
        for part, new in (("key", turned[1]), ("value", self.apart(value, self.size.key_heads))):
            past, present = self.state(layer, part, "max_tokens")
            presents.append(self.node("TensorScatter", past, new, "write_indices", outputs=[present], axis=2))
        y = self.node("Attention", turned[0], *presents, "", "", "", "nonpad_kv_seqlen", is_causal=1)
        return self.beside(y)


class Sequences:
    """A compiled decoder's caches and tables, run in process; blocks are given out in an order of their own."""

    def __init__(self, model: onnx.ModelProto, layout: StateLayout, seed: int = 1, **options: Any) -> None:
        self.model = model
        self.layout = layout
        self.options = options
        self.kernels = "golden"
        self.lengths = [0] * layout.slots
        self.tables = np.full((layout.slots, layout.entries), -1, np.int32)
        self.states: list[bytearray] = []
        self._free = list(np.random.default_rng(seed).permutation(layout.blocks))
        self._programs: dict[tuple[int, int], CompiledProgram] = {}

    def program(self, rows: int, tokens: int) -> CompiledProgram:
        """The program for a step of this shape."""
        if (rows, tokens) not in self._programs:
            shapes = {"input_ids": (rows, tokens)}
            self._programs[rows, tokens] = compile_model(self.model, shapes, states=self.layout, **self.options)
        return self._programs[rows, tokens]

    def step(
        self, words: Mapping[int, Sequence[int]], tokens: int, more: Mapping[str, Array] | None = None
    ) -> dict[int, Array]:
        """New words by slot, in one step; returns the logits of each."""
        program = self.program(len(words), tokens)
        self._keep(program)
        ids = np.zeros((len(words), tokens), I64)
        rows = np.zeros((len(words), 3), np.int32)
        for row, (slot, new) in enumerate(words.items()):
            ids[row, : len(new)] = new
            rows[row] = slot, self.lengths[slot], len(new)
            self._grow(slot, self.lengths[slot] + len(new))
        given: dict[str, Array] = {"input_ids": ids, ROWS: rows, TABLES: self.tables, **(more or {})}
        inputs = [given[info.name] for info in program.inputs]
        constants = [constant.array for constant in program.constants]
        states = [memoryview(state) for state in self.states]
        outputs, _ = execute(program.image, inputs, self.kernels, constants, states=states)
        logits = dict(zip([info.name for info in program.outputs], outputs, strict=True))["logits"]
        for slot, new in words.items():
            self.lengths[slot] += len(new)
        return {slot: logits[row, : len(new)] for row, (slot, new) in enumerate(words.items())}

    def _keep(self, program: CompiledProgram) -> None:
        """Memory for the caches, as the first program has them; others must have the same."""
        sizes = [math.prod(map(int, info.shape)) * np.dtype(info.dtype).itemsize for info in program.caches]
        if not self.states:
            self.states = [bytearray(align_up(size)) for size in sizes]
        assert [len(state) for state in self.states] == [align_up(size) for size in sizes]

    def _grow(self, slot: int, tokens: int) -> None:
        wanted = -(-tokens // self.layout.block_tokens)
        for entry in range(wanted):
            if self.tables[slot, entry] < 0:
                self.tables[slot, entry] = self._free.pop()


def whole(model: onnx.ModelProto, words: Sequence[int], room: int = 0) -> Array:
    """The logits of all words, given at once to the model as it is, its states empty."""
    shapes: dict[str, tuple[int, ...]] = {}
    arrays: dict[str, Array] = {}
    for entry in model.graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in entry.type.tensor_type.shape.dim]
        arrays[entry.name] = _first(entry.name, shape, len(words), room).astype(dtype)
        shapes[entry.name] = arrays[entry.name].shape
    arrays["input_ids"] = np.array([words], I64)
    compiled = compile_model(model, shapes)
    constants = [constant.array for constant in compiled.constants]
    outputs, _ = execute(compiled.image, [arrays[info.name] for info in compiled.inputs], "golden", constants)
    return next(array[0] for info, array in zip(compiled.outputs, outputs, strict=True) if info.name == "logits")


def _first(name: str, shape: Sequence[int | str], tokens: int, room: int) -> Array:
    """What a model takes in the first step of one sequence."""
    known: dict[str, Array] = {
        "write_indices": np.zeros(1),
        "nonpad_kv_seqlen": np.full(1, tokens),
        "token_counts": np.full(1, tokens),
        "position_ids": np.arange(tokens)[None],
        "attention_mask": np.ones((1, tokens)),
        "seqlens_k": np.full(1, tokens - 1),
        "total_sequence_length": np.full(1, tokens),
    }
    if name in known:
        return known[name]
    extents = {"batch": 1, "tokens": tokens, "max_tokens": room or tokens, "past": 0}
    return np.zeros([extents[n] if isinstance(n, str) else n for n in shape])
