"""Large tensors are cut out of a serialised model, and everything else stays as protobuf reads it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sdk.compiler.skeleton import LEAST_BYTES, LENGTH_KEY, OFFSET_KEY, NotAMessage, cut
from tests.support.models import model, node, storage_net

LARGE = np.arange(LEAST_BYTES, dtype=np.float32)


def net() -> onnx.ModelProto:
    """Large tensors as an initialiser, a Constant, and within a branch; small ones beside them."""
    branch = helper.make_graph(
        [node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE * 3))],
        "branch",
        [],
        [helper.make_empty_tensor_value_info("k")],
    )
    nodes = [
        node("Constant", [], ["c"], value=numpy_helper.from_array(LARGE * 2)),
        node("If", ["b"], ["d"], then_branch=branch, else_branch=branch),
        node("Add", ["c", "w"], ["y"]),
    ]
    weights = {"w": LARGE, "b": np.array(True), "small": np.ones(3, np.float32)}
    return model(nodes, {}, {"y": np.float32}, weights)


def tensors(found: onnx.ModelProto) -> list[onnx.TensorProto]:
    constant, choice, _ = found.graph.node
    branches = [attribute.g.node[0].attribute[0].t for attribute in choice.attribute]
    return [found.graph.initializer[0], constant.attribute[0].t, *branches]


def test_large_tensors_say_where_they_lie() -> None:
    original = net()
    data = original.SerializeToString()
    small = cut(memoryview(data))
    skeleton = onnx.ModelProto.FromString(small)
    assert len(small) < 2000 < LARGE.nbytes < len(data)
    for whole, pointed in zip(tensors(original), tensors(skeleton), strict=True):
        place = {entry.key: int(entry.value) for entry in pointed.external_data}
        assert data[place[OFFSET_KEY] :][: place[LENGTH_KEY]] == whole.raw_data
        pointed.ClearField("external_data")
        pointed.ClearField("data_location")
        pointed.raw_data = whole.raw_data
    assert skeleton == original


def test_a_model_without_large_tensors_stays_as_it_is() -> None:
    data = storage_net().SerializeToString()
    assert cut(memoryview(data)) == data


def test_of_raw_data_given_twice_the_last_counts_as_for_protobuf() -> None:
    first, last = numpy_helper.from_array(LARGE, "w"), numpy_helper.from_array(LARGE * 2, "w")
    twice = first.SerializeToString() + b"\x4a" + b"\x80\x80\x01" + last.raw_data  # field 9, 16384 bytes
    graph = onnx.GraphProto()
    data = bytearray(b"\x2a" + _varint(len(twice)) + twice)
    message = bytes(b"\x3a" + _varint(len(data)) + data)
    place = {
        e.key: int(e.value)
        for e in onnx.ModelProto.FromString(cut(memoryview(message))).graph.initializer[0].external_data
    }
    graph.MergeFromString(bytes(data))
    assert message[place[OFFSET_KEY] :][: place[LENGTH_KEY]] == graph.initializer[0].raw_data == last.raw_data


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])


@pytest.mark.parametrize("end", [5000, 20000])
def test_a_truncated_model_is_no_message(end: int) -> None:
    with pytest.raises(NotAMessage):
        cut(memoryview(net().SerializeToString()[:end]))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 17), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_are_cut_or_refused(position: int, junk: bytes) -> None:
    data = bytearray(net().SerializeToString())
    at = position % len(data)
    data[at : at + len(junk)] = junk
    try:
        small = cut(memoryview(bytes(data)))
    except NotAMessage:
        return
    assert len(small) <= len(data) + 200
