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

    mode = "linear"
    room: int | str = "max_tokens"

    def scattered(self, past: str, new: str, present: str) -> str:
        """A state with new tokens in it, as attention reads it."""
        return self.node("TensorScatter", past, new, "write_indices", outputs=[present], axis=2, mode=self.mode)

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
            past, present = self.state(layer, part, self.room)
            presents.append(self.scattered(past, new, present))
        y = self.node("Attention", turned[0], *presents, "", "", "", "nonpad_kv_seqlen", is_causal=1)
        return self.beside(y)


class Grouping(Decoder):
    """com.microsoft.GroupQueryAttention with a past that has room, positions of its own, heads in one tensor."""

    opset = 23
    window = -1
    packed = True

    def begin(self) -> None:
        self.inputs += [Shape("attention_mask", INT64, ["batch", "max_tokens"])]
        counted = self.node("ReduceSum", "attention_mask", np.array([1], I64), keepdims=0)
        self.last = self.node("Cast", self.node("Sub", counted, np.array([1], I64)), to=INT32)
        length = self.node("Shape", "attention_mask", start=1, end=2)
        self.total = self.node("Cast", length, to=INT32)
        self.cosines, self.sines = map(self.constant, self.angles())

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        pairs = [self.state(layer, part, "max_tokens") for part in ("key", "value")]
        operands = [query, key, value]
        if self.packed:
            operands = [self.node("Concat", query, key, value, axis=-1), "", ""]
        operands += [past for past, _ in pairs] + [self.last, self.total, self.cosines, self.sines]
        return self.node(
            "GroupQueryAttention",
            *operands,
            outputs=[f"attended{layer}", *(present for _, present in pairs)],
            domain="com.microsoft",
            num_heads=self.size.heads,
            kv_num_heads=self.size.key_heads,
            do_rotary=1,
            local_window_size=self.window,
            softcap=2.0,
        )


class SlidingGrouping(Grouping):
    """The same with queries that see few keys, and counts that are given."""

    window = 5
    packed = False

    def begin(self) -> None:
        self.inputs += [Shape("seqlens_k", INT32, ["batch"]), Shape("total_sequence_length", INT32, [])]
        self.last, self.total = "seqlens_k", "total_sequence_length"
        self.cosines, self.sines = map(self.constant, self.angles())


class Owning(Decoder):
    """Attention that joins new tokens to a past of its own."""

    opset = 23

    def begin(self) -> None:
        self.inputs += [Shape("position_ids", INT64, ["batch", "tokens"])]
        self.cosines, self.sines = map(self.constant, self.angles())

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        turned = [
            self.node("RotaryEmbedding", x, self.cosines, self.sines, "position_ids", num_heads=heads)
            for x, heads in ((query, self.size.heads), (key, self.size.key_heads))
        ]
        pairs = [self.state(layer, part, "past", "total") for part in ("key", "value")]
        return self.node(
            "Attention",
            *turned,
            value,
            "",
            *(past for past, _ in pairs),
            outputs=[f"attended{layer}", *(present for _, present in pairs)],
            is_causal=1,
            q_num_heads=self.size.heads,
            kv_num_heads=self.size.key_heads,
        )


class Concatenating(Decoder):
    """Optimum's form: Concat, heads repeated, attention in pieces, a mask of what follows from several inputs."""

    opset = 23
    places_given = True

    def begin(self) -> None:
        self.inputs += [Shape("attention_mask", INT64, ["batch", "total"])]
        if self.places_given:
            self.inputs += [Shape("position_ids", INT64, ["batch", "tokens"])]
        zero, one = np.array(0, I64), np.array(1, I64)
        self.pasts = [
            [self.state(layer, part, "past", "total") for part in ("key", "value")] for layer in range(self.size.layers)
        ]
        before = self.node("Shape", self.pasts[0][0][0], start=2, end=3)
        total = self.node("Add", before, self.tokens())
        first, end = self.node("Squeeze", before), self.node("Squeeze", total)
        places = self.counted = self.node("Range", first, end, one)
        keys = self.node("Range", zero, end, one)
        earlier = self.node("LessOrEqual", keys, self.node("Unsqueeze", places, np.array([1], I64)))
        there = self.node(
            "Cast", self.node("Unsqueeze", "attention_mask", np.array([1, 2], I64)), to=onnx.TensorProto.BOOL
        )
        allowed = self.node("And", earlier, there)
        self.mask = self.node("Where", allowed, np.array(0, F32), np.array(np.finfo(F32).min, F32))
        self.places = "position_ids" if self.places_given else self.node("Unsqueeze", places, np.array([0], I64))
        self.cosines, self.sines = self._gathered()

    def _gathered(self) -> tuple[str, str]:
        tables = (np.concatenate([angle, angle], 1) for angle in self.angles())
        cosines, sines = (
            self.node("Unsqueeze", self.node("Gather", table, self.places), np.array([1], I64)) for table in tables
        )
        return cosines, sines

    def _turned(self, x: str) -> str:
        """A rotary embedding in pieces."""
        half = self.size.size // 2
        low = self.node("Slice", x, np.array([0], I64), np.array([half], I64), np.array([3], I64))
        high = self.node("Slice", x, np.array([half], I64), np.array([2 * half], I64), np.array([3], I64))
        other = self.node("Concat", self.node("Neg", high), low, axis=-1)
        return self.node("Add", self.node("Mul", x, self.cosines), self.node("Mul", other, self.sines))

    def _repeated(self, x: str) -> str:
        """Every head of keys as often as heads of queries use it."""
        groups, size = self.size.heads // self.size.key_heads, self.size
        apart = self.node("Unsqueeze", x, np.array([2], I64))
        extents = self.node("Shape", x)
        length = self.node("Slice", extents, np.array([2], I64), np.array([3], I64))
        batch = self.node("Slice", extents, np.array([0], I64), np.array([1], I64))
        fixed = [np.array([n], I64) for n in (size.key_heads, groups, size.size)]
        shape = self.node("Concat", batch, fixed[0], fixed[1], length, fixed[2], axis=0)
        joined = self.node("Concat", batch, np.array([size.heads], I64), length, fixed[2], axis=0)
        return self.node("Reshape", self.node("Expand", apart, shape), joined)

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        query = self._turned(self.apart(query, self.size.heads))
        new = (self._turned(self.apart(key, self.size.key_heads)), self.apart(value, self.size.key_heads))
        presents = [
            self._repeated(self.node("Concat", past, x, outputs=[present], axis=2))
            for (past, present), x in zip(self.pasts[layer], new, strict=True)
        ]
        scores = self.node("MatMul", query, self.node("Transpose", presents[0], perm=[0, 1, 3, 2]))
        scaled = self.node("Mul", scores, np.array(self.size.size**-0.5, F32))
        return self.beside(self.node("MatMul", self.probabilities(scaled), presents[1]))

    def probabilities(self, scores: str) -> str:
        """Softmax of what may be attended."""
        return self.node("Softmax", self.node("Add", scores, self.mask), axis=-1)


class Choosing(Concatenating):
    """A constant triangle chooses scores, of which a part follows from how long the past is."""

    def begin(self) -> None:
        super().begin()
        triangle = self.constant(np.tri(self.size.context, dtype=bool)[None, None])
        before = self.node("Shape", self.pasts[0][0][0], start=2, end=3)
        total = self.node("Add", before, self.tokens())
        rows = self.node("Slice", triangle, before, total, np.array([2], I64))
        self.chosen = self.node("Slice", rows, np.array([0], I64), total, np.array([3], I64))

    def probabilities(self, scores: str) -> str:
        """Softmax of what may be attended."""
        return self.node("Softmax", self.node("Where", self.chosen, scores, np.array(-1e4, F32)), axis=-1)


class Tracing(Concatenating):
    """A mask as tracing leaves it: a triangle of the lowest number, of which padding is told by sums, scaled twice."""

    def begin(self) -> None:
        super().begin()
        lowest, one = np.array(np.finfo(F32).min, F32), np.array([1], I64)
        places = self.node("Reshape", self.counted, np.array([-1, 1], I64))
        count = self.node("Squeeze", self.node("Shape", "attention_mask", start=1, end=2))
        keys = self.node("Range", np.array(0, I64), count, np.array(1, I64))
        shape = self.node("Concat", self.tokens(), self.node("Shape", "attention_mask", start=1, end=2), axis=0)
        full = self.node("Expand", lowest, shape)
        triangle = self.node("Trilu", full, np.array(1, I64), upper=1)
        later = self.node("Cast", self.node("Greater", keys, places), to=FLOAT)
        causal = self.node("Unsqueeze", self.node("Mul", triangle, later), np.array([0, 1], I64))
        batch = self.node("Shape", "input_ids", start=0, end=1)
        causal = self.node("Expand", causal, self.node("Concat", batch, one, shape, axis=0))
        there = self.node("Cast", self.node("Unsqueeze", "attention_mask", np.array([1, 2], I64)), to=FLOAT)
        padding = self.node("Equal", self.node("Add", causal, there), np.array(0, F32))
        self.mask = self.node("Where", padding, lowest, causal)

    def probabilities(self, scores: str) -> str:
        return self.node("Cast", self.node("Cast", super().probabilities(scores), to=FLOAT), to=FLOAT)


class Splitting(Owning):
    """MultiHeadAttention, which joins new tokens to its past and puts heads apart; every head has keys of its own."""

    def __init__(self) -> None:
        super().__init__(Size(key_heads=4))

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        pairs = [self.state(layer, part, "past", "total") for part in ("key", "value")]
        operands = [query, key, value, "", "", "", *(past for past, _ in pairs)]
        results = [f"attended{layer}", *(present for _, present in pairs)]
        heads = self.size.heads
        return self.node(
            "MultiHeadAttention", *operands, outputs=results, domain="com.microsoft", num_heads=heads, unidirectional=1
        )


class TokensFirst(Scattering):
    """Caches of [batch, tokens, heads, size]."""

    def state(self, layer: int, part: str, length: int | str, present: int | str | None = None) -> tuple[str, str]:
        names = super().state(layer, part, length, present)
        for entries in (self.inputs, self.outputs):
            name, kind, shape = entries[-1]
            batch, heads, tokens, size = shape or []
            entries[-1] = Shape(name, kind, [batch, tokens, heads, size])
        return names

    def scattered(self, past: str, new: str, present: str) -> str:
        by_token = self.node("Transpose", new, perm=[0, 2, 1, 3])
        self.node("TensorScatter", past, by_token, "write_indices", outputs=[present], axis=1, mode=self.mode)
        return self.node("Transpose", present, perm=[0, 2, 1, 3])


class Narrowing(Scattering):
    """Values are narrower than keys, so that they are in a cache of their own."""

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        keys, size = self.size, self.size._replace(size=4)
        narrow = self.node("MatMul", value, self.weight(keys.key_heads * keys.size, size.key_heads * size.size))
        self.values = size
        y = super().attention(layer, query, key, narrow)
        return self.node("MatMul", y, self.weight(size.heads * size.size, keys.width))

    def state(self, layer: int, part: str, length: int | str, present: int | str | None = None) -> tuple[str, str]:
        whole = self.size
        self.size = self.values if part == "value" else whole
        names = super().state(layer, part, length, present)
        self.size = whole
        return names

    def apart(self, x: str, heads: int) -> str:
        """The same for whatever size the heads have."""
        shape = np.array([0, 0, heads, -1], I64)
        return self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])


class Circling(Scattering):
    """A ring of few tokens: where they lie is not where they stand."""

    mode, room = "circular", 6

    def begin(self) -> None:
        super().begin()
        self.inputs.append(Shape("position_ids", INT64, ["batch", "tokens"]))
        self.places = "position_ids"


class SummingPlaces(Concatenating):
    """The same where places follow from how many tokens a mask has."""

    places_given = False

    def _gathered(self) -> tuple[str, str]:
        before = self.node("Shape", self.pasts[0][0][0], start=2, end=3)
        summed = self.node("CumSum", "attention_mask", np.array(1, I64))
        places = self.node("Sub", summed, np.array([1], I64))
        end = np.array([np.iinfo(I64).max], I64)
        self.places = self.node("Slice", places, before, end, np.array([1], I64))
        return super()._gathered()


class CountingPlaces(Concatenating):
    """The same where places follow from how long the past is, and are no input."""

    places_given = False


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


def whole(model: onnx.ModelProto, words: Sequence[int]) -> Array:
    """The logits of all words, given at once to the model as it is, its states empty."""
    grows = all(node.op_type != "TensorScatter" for node in model.graph.node)
    shapes: dict[str, tuple[int, ...]] = {}
    arrays: dict[str, Array] = {}
    for entry in model.graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in entry.type.tensor_type.shape.dim]
        arrays[entry.name] = _first(entry.name, shape, len(words), grows).astype(dtype)
        shapes[entry.name] = arrays[entry.name].shape
    arrays["input_ids"] = np.array([words], I64)
    compiled = compile_model(model, shapes)
    constants = [constant.array for constant in compiled.constants]
    outputs, _ = execute(compiled.image, [arrays[info.name] for info in compiled.inputs], "golden", constants)
    return next(array[0] for info, array in zip(compiled.outputs, outputs, strict=True) if info.name == "logits")


def _first(name: str, shape: Sequence[int | str], tokens: int, grows: bool) -> Array:
    """What a model takes in the first step of one sequence."""
    known: dict[str, Array] = {
        "write_indices": np.zeros(1),
        "nonpad_kv_seqlen": np.full(1, tokens),
        "token_counts": np.full(1, tokens),
        "position_ids": np.arange(tokens)[None],
        "attention_mask": np.ones((1, tokens)),
        "seqlens_k": np.full(1, tokens - 1),
        "total_sequence_length": np.full((), tokens),
    }
    if name in known:
        return known[name]
    extents = {"batch": 1, "tokens": tokens, "max_tokens": 0 if grows else tokens, "past": 0}
    return np.zeros([extents[n] if isinstance(n, str) else n for n in shape])
