"""States that cannot lie in caches are refused, by the names of the pair and of the node, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, read_model
from sdk.compiler.states import StateKind, StateLayout, StatePair, find_states
from tests.support.decoders import F32, FLOAT, I64, Concatenating, CountingPlaces, Decoder, Owning, Scattering, Shape

LAYOUT = StateLayout(blocks=32, slots=4, entries=8, block_tokens=4)
FIRST = r"'past_key_values\.0\.\w+' -> 'present\.0\.\w+'"


def compiled(decoder: Decoder, rows: int = 1, tokens: int = 3, **options: Any) -> Any:
    return compile_model(decoder.model(), {"input_ids": (rows, tokens)}, states=LAYOUT, **options)


class Masked(Concatenating):
    """With something else added to the scores."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def begin(self) -> None:
        super().begin()
        if self.what == "everything":
            self.mask = self.node("Mul", self.mask, np.array(0, F32))
        elif self.what == "bias":
            self.mask = self.node("Add", self.mask, np.arange(self.size.heads, dtype=F32)[None, :, None, None] + 1)
        elif self.what == "given":
            self.inputs.append(Shape("bias", FLOAT, ["batch", 1, "tokens", "total"]))
            self.mask = "bias"
        elif self.what == "gaps":
            table = np.where(np.arange(32) == 1, np.finfo(F32).min, 0).astype(F32)
            self.mask = self.node("Add", self.mask, self.node("Slice", table, [0], self.total(), [0]))

    def total(self) -> str:
        """How many keys there are: int64[1]."""
        return self.node("Shape", "attention_mask", start=1, end=2)

    def node(self, op: str, *operands: Any, **options: Any) -> str:
        return super().node(op, *(np.array(x, I64) if isinstance(x, list) else x for x in operands), **options)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("everything", "not causal: a query sees later keys"),
        ("bias", "adds something to scores"),
        ("gaps", "not causal: a query sees not all keys up to its own"),
        ("given", "its mask does not follow from the states alone"),
    ],
)
def test_a_mask_that_is_not_causal_is_refused_with_the_reason(what: str, reason: str) -> None:
    shapes = {"bias": (1, 1, 3, 32)} if what == "given" else {}
    model = Masked(what).model()
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        compile_model(model, {"input_ids": (1, 3), **shapes}, states=LAYOUT)
    assert refused.match(FIRST)
    assert refused.value.node is not None


class Leaking(Scattering):
    """What a state holds goes elsewhere, too."""

    def attention(self, layer: int, query: str, key: str, value: str) -> str:
        y = super().attention(layer, query, key, value)
        peak = self.node("ReduceMax", "present.0.key", np.array([1, 2, 3], I64), keepdims=0)
        return self.node("Add", y, self.node("Unsqueeze", peak, np.array([1, 2], I64)))


def test_a_state_that_something_else_reads_is_refused_by_pair_and_node() -> None:
    with pytest.raises(UnsupportedModel, match=r"TENSOR_SCATTER reads it, and only attention may") as refused:
        compiled(Leaking())
    assert refused.match(FIRST)
    assert refused.value.node is not None


class Elsewhere(Scattering):
    """New tokens are written one place too far."""

    def node(self, op: str, *operands: Any, **options: Any) -> str:
        if op == "TensorScatter":
            operands = (*operands[:2], super().node("Add", operands[2], np.array([1], I64)))
        return super().node(op, *operands, **options)


def test_tokens_that_are_written_elsewhere_than_after_the_past_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not written where those of the past end"):
        compiled(Elsewhere())


class Open(Scattering):
    """Nothing keeps a query from later keys."""

    def node(self, op: str, *operands: Any, **options: Any) -> str:
        options.pop("is_causal", None)
        return super().node(op, *operands, **options)


def test_attention_without_an_order_is_refused_for_several_tokens_and_taken_for_one() -> None:
    with pytest.raises(UnsupportedModel, match="queries see later keys"):
        compiled(Open())
    assert compiled(Open(), tokens=1).caches


class Flat(CountingPlaces):
    """Places are of one row alone: a vector that no dimension of rows goes with."""

    def _gathered(self) -> tuple[str, str]:
        tables = (np.concatenate([angle, angle], 1) for angle in self.angles())
        cosines, sines = (self.node("Gather", table, self.counted) for table in tables)
        return cosines, sines


def test_places_counted_for_all_rows_at_once_are_refused_for_several_rows() -> None:
    with pytest.raises(UnsupportedModel, match="depends on how long the past is"):
        compiled(Flat(), rows=2)


class Scaling(Concatenating):
    """Rotary embeddings are scaled for texts longer than 20 tokens, and not for shorter ones."""

    def begin(self) -> None:
        super().begin()
        before = self.node("Shape", self.pasts[0][0][0], start=2, end=3)
        total = self.node("Squeeze", self.node("Add", before, self.tokens()))
        scale = self.node("Where", self.node("Greater", total, np.array(20, I64)), np.array(0.5, F32), np.array(1, F32))
        self.cosines = self.node("Mul", self.cosines, scale)


def test_what_changes_at_some_length_of_the_past_is_refused_wherever_that_lies() -> None:
    with pytest.raises(UnsupportedModel, match="depends on how long the past is"):
        compiled(Scaling())


def test_inputs_that_follow_from_the_states_may_not_be_given() -> None:
    model = Owning().model()
    with pytest.raises(ValueError, match="is a state, which the device holds; leave it out"):
        compile_model(model, {"input_ids": (1, 2), "past_key_values.0.key": (1, 2, 4, 8)}, states=LAYOUT)
    with pytest.raises(ValueError, match="'attention_mask' follows from the state; leave it out"):
        compile_model(Concatenating().model(), {"input_ids": (1, 2), "attention_mask": (1, 4)}, states=LAYOUT)


def test_places_may_be_given() -> None:
    program = compile_model(Owning().model(), {"input_ids": (1, 2), "position_ids": (1, 2)}, states=LAYOUT)
    names = [info.name for info in program.inputs]
    assert names == ["input_ids", "position_ids", "state.rows", "state.tables"]


def recurrent(size: int = 4) -> onnx.ModelProto:
    """h' = tanh(h + x), or longer than h."""
    nodes = [onnx.helper.make_node("Add", ["h", "x"], ["sum"]), onnx.helper.make_node("Tanh", ["sum"], ["y"])]
    nodes.append(onnx.helper.make_node("Concat", ["y"] * (size // 4), ["next"], axis=1, name="joined"))
    infos = [onnx.helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in ("x", "h")]
    outputs = [onnx.helper.make_tensor_value_info(n, FLOAT, None) for n in ("y", "next")]
    graph = onnx.helper.make_graph(nodes, "recurrent", infos, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=11)


def test_a_named_pair_of_constant_shape_stays_an_input_and_an_output_of_the_step() -> None:
    graph = read_model(recurrent())
    assert find_states(graph) == ()
    pairs = find_states(graph, {"h": "next"})
    assert pairs == (StatePair("h", "next", StateKind.REPLACE, "as named"),)
    program = compile_model(graph, {"x": (3, 4)}, states=LAYOUT, pairs=pairs)
    assert [str(info) for info in program.inputs] == ["x: float32[3, 4]", "h: float32[3, 4]"]
    assert [info.name for info in program.outputs] == ["y", "next"]
    assert program.caches == ()
    assert [(s.kind, s.shape, s.bytes_per_token) for s in program.states] == [(StateKind.REPLACE, (3, 4), 0)]


def test_a_replaced_state_whose_next_value_has_another_shape_is_refused_by_pair_and_node() -> None:
    graph = read_model(recurrent(8))
    pairs = find_states(graph, {"h": "next"})
    with pytest.raises(UnsupportedModel, match=r"'h' -> 'next': its next value is float32\[1, 8\]") as refused:
        compile_model(graph, {"x": (1, 4)}, states=LAYOUT, pairs=pairs)
    assert refused.value.node == "joined"
