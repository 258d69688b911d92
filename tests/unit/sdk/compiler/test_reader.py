"""What cannot run is refused with node, operator and reason; damaged models are refused, whatever they contain."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from driver_shim.errors import NpuError, UnsupportedModel
from driver_shim.protocol.program import align_up
from emulator.engines.job import ProgramFault
from emulator.model.verify import verify
from sdk.compiler import compile_model, model_signature, read_model
from tests.support.models import model, node, quantised_net, storage_net
from tests.support.programs import execute_compiled

F32 = np.float32
Change = Callable[[onnx.ModelProto], Any]


def net() -> onnx.ModelProto:
    return model(
        [node("MatMul", ["x", "w"], ["p"]), node("Relu", ["p"], ["y"])],
        {"x": (F32, ("n", 2))},
        {"y": F32},
        {"w": np.ones((2, 3), F32)},
    )


def lines_of(error: UnsupportedModel) -> list[str]:
    """The reasons, one a line, below the line that says what they are reasons for."""
    headline, *reasons = str(error).splitlines()
    assert headline == "the model cannot run on the device:"
    return [reason.removeprefix("  ") for reason in reasons]


def reasons_against(wrong: onnx.ModelProto) -> list[str]:
    with pytest.raises(UnsupportedModel) as caught:
        model_signature(wrong)
    return lines_of(caught.value)


def test_every_unsupported_operator_is_listed() -> None:
    nodes = [node("Multinomial", ["x"], ["a"]), node("Relu", ["x"], ["b"]), node("RandomNormalLike", ["x"], ["y"])]
    with pytest.raises(UnsupportedModel) as caught:
        model_signature(model(nodes, {"x": (F32, (2, 2))}, {"y": np.int64}))
    error = caught.value
    assert (error.node, error.op, error.code) == ("make_a", "Multinomial", "unsupported-model")
    assert lines_of(error) == [
        "Multinomial (node 'make_a'): the operator is not supported",
        "RandomNormalLike (node 'make_y'): the operator is not supported",
    ]
    assert isinstance(error, NpuError)
    assert isinstance(error, ValueError)


def test_nodes_refused_for_one_reason_share_a_line_and_are_all_in_the_errors_data() -> None:
    nodes = [node("Multinomial", ["x"], [f"d{index}"]) for index in range(53)]
    nodes += [node("Relu", ["x"], ["y"], slope=1.0), node("Relu", ["x"], ["z"], alpha=1.0)]
    with pytest.raises(UnsupportedModel) as caught:
        model_signature(model(nodes, {"x": (F32, (2, 2))}, {"y": F32}))
    assert lines_of(caught.value) == [
        "Multinomial (53 nodes, first 'make_d0'): the operator is not supported",
        "Relu (node 'make_y'): the attribute 'slope' is unknown or of a wrong type",
        "Relu (node 'make_z'): the attribute 'alpha' is unknown or of a wrong type",
    ]
    assert [(problem.node, problem.op) for problem in caught.value.problems] == [
        *((f"make_d{index}", "Multinomial") for index in range(53)),
        ("make_y", "Relu"),
        ("make_z", "Relu"),
    ]
    assert caught.value.problems[0].reason == "the operator is not supported"
    assert (caught.value.node, caught.value.op) == ("make_d0", "Multinomial")


def test_a_node_without_a_name_is_told_by_its_place_and_output() -> None:
    nameless = [
        helper.make_node(op, ["x"], [out]) for op, out in (("Relu", "a"), ("Multinomial", "b"), ("Multinomial", "c"))
    ]
    wrong = model(
        [*nameless, helper.make_node("RandomNormalLike", ["x"], ["y"])], {"x": (F32, (2, 2))}, {"y": np.int64}
    )
    assert reasons_against(wrong) == [
        "Multinomial (2 nodes, first the 2nd, output 'b'): the operator is not supported",
        "RandomNormalLike (the 4th node, output 'y'): the operator is not supported",
    ]
    refused_by_shape = model([helper.make_node("ReduceMax", ["x"], ["y"], axes=[2])], {"x": (F32, (2, 2))}, {"y": F32})
    with pytest.raises(UnsupportedModel, match=r"ReduceMax \(the 1st node, output 'y'\): axis 2"):
        compile_model(refused_by_shape)


def test_many_different_reasons_are_cut_short() -> None:
    nodes = [node("Relu", ["x"], [f"y{index}"], **{f"a{index}": 1}) for index in range(25)]
    reasons = reasons_against(model(nodes, {"x": (F32, (2,))}, {"y0": F32}))
    assert (len(reasons), reasons[-1]) == (21, "and 5 more")


def test_initialisers_refused_for_one_reason_share_a_line() -> None:
    weights = {f"w{index}": np.ones(2) for index in range(30)}
    nodes = [node("Add", ["x", name], [f"y_{name}"]) for name in weights]
    (reason,) = reasons_against(model(nodes, {"x": (F32, (2,))}, {"y_w0": F32}, weights))
    assert reason.startswith("30 initialisers, first 'w0': float64 is not supported")


def old_style(m: onnx.ModelProto) -> None:
    """Declare the initialisers as inputs too, as models before IR version 4 do."""
    for tensor in m.graph.initializer:
        m.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _opset_5(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 5


def _opset_5_with_a_later_removed_operator(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 5
    m.graph.node[1].CopyFrom(helper.make_node("Upsample", ["p", "w"], ["y"]))


def _two_opsets(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("ai.onnx", 17))


def _everything_double(m: onnx.ModelProto) -> None:
    _double_input(m)
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _sequence_output_of_a_foreign_node(m: onnx.ModelProto) -> None:
    m.graph.node[1].CopyFrom(helper.make_node("ZipMap", ["p"], ["y"], "zip", domain="ai.onnx.ml"))
    m.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))


def _double_weight_of_an_old_model(m: onnx.ModelProto) -> None:
    _double_weight(m)
    old_style(m)


def _sparse_weight(m: onnx.ModelProto) -> None:
    m.graph.sparse_initializer.add().values.CopyFrom(m.graph.initializer[0])
    del m.graph.initializer[0]


def _sparse_weight_of_an_old_model(m: onnx.ModelProto) -> None:
    old_style(m)
    _sparse_weight(m)


def _missing_weight_read_twice(m: onnx.ModelProto) -> None:
    del m.graph.initializer[0]
    m.graph.node.append(node("Mul", ["w", "w"], ["z"]))
    m.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))


def _required_attribute_of_a_wrong_type(m: onnx.ModelProto) -> None:
    m.graph.node[1].CopyFrom(node("Cast", ["p"], ["y"], to="float"))


FOLLOWED: list[tuple[Change, str]] = [
    (_opset_5, r"opset 5 of ONNX's own operators; 7 to \d+ are supported.*"),
    (_opset_5_with_a_later_removed_operator, r"opset 5 of ONNX's own operators; 7 to \d+ are supported.*"),
    (_two_opsets, r"the opset is given twice, as 17 and 17"),
    (_everything_double, r"input 'x': float64.*"),
    (_sequence_output_of_a_foreign_node, r"ZipMap \(node 'zip'\): operators of the domain 'ai.onnx.ml'.*"),
    (_double_weight_of_an_old_model, r"initialiser 'w': float64.*"),
    (_sparse_weight, r"sparse initialisers are not supported.*"),
    (_sparse_weight_of_an_old_model, r"sparse initialisers are not supported.*"),
    (_missing_weight_read_twice, r"MatMul \(node 'make_p'\): its input 'w' is not defined.*"),
    (_required_attribute_of_a_wrong_type, r"Cast \(node 'make_y'\): the attribute 'to' is unknown or of a wrong type"),
]


@pytest.mark.parametrize(("change", "reason"), FOLLOWED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_follows_from_a_problem_is_no_problem_of_its_own(change: Change, reason: str) -> None:
    wrong = net()
    change(wrong)
    (found,) = reasons_against(wrong)
    assert re.fullmatch(reason, found)


def test_a_problem_that_follows_from_no_other_is_listed_beside_it() -> None:
    wrong = net()
    _opset_5(wrong)
    _missing_output(wrong)
    _missing_initialiser(wrong)
    opset, weight, output = reasons_against(wrong)
    assert opset.startswith("opset 5")
    assert "its input 'w' is not defined" in weight
    assert output == "the output 'nowhere' is never computed"


def _double_input(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _double_weight(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 3)), "w"))


def _string_input(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _sequence_input(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))


def _unsorted(m: onnx.ModelProto) -> None:
    first = m.graph.node[0]
    m.graph.node.append(first)
    del m.graph.node[0]


def _cycle(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = "y"


def _missing_initialiser(m: onnx.ModelProto) -> None:
    del m.graph.initializer[0]


def _missing_output(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "nowhere"


def _no_output(m: onnx.ModelProto) -> None:
    del m.graph.output[0]


def _duplicate_name(m: onnx.ModelProto) -> None:
    m.graph.node[1].output[0] = "p"


def _duplicate_input(m: onnx.ModelProto) -> None:
    m.graph.input.append(m.graph.input[0])


def _duplicate_output(m: onnx.ModelProto) -> None:
    m.graph.output.append(m.graph.output[0])


def _old_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 5


def _future_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 1000


def _no_opset(m: onnx.ModelProto) -> None:
    del m.opset_import[:]


def _only_another_domains_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].CopyFrom(helper.make_opsetid("ai.onnx.ml", 3))


def _foreign_domain(m: onnx.ModelProto) -> None:
    m.graph.node[1].domain = "com.example"


def _subgraph_that_reads_nothing_known(m: onnx.ModelProto) -> None:
    branch = helper.make_graph([node("Relu", ["nowhere"], ["r"])], "b", [], [helper.make_empty_tensor_value_info("r")])
    m.graph.node[1].CopyFrom(helper.make_node("If", ["p"], ["y"], then_branch=branch, else_branch=branch))


def _short_weight(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].raw_data = b"\0" * 5


def _huge_weight(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[0] = 1 << 60


def _negative_weight(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[0] = -2


def _external_weight(m: onnx.ModelProto) -> None:
    tensor = m.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _sparse(m: onnx.ModelProto) -> None:
    m.graph.sparse_initializer.add()


def _unknown_attribute(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("slope", 1.0))


def _wrong_attribute(m: onnx.ModelProto) -> None:
    m.graph.node[1].CopyFrom(helper.make_node("Softmax", ["p"], ["y"], axis=1.5))


def _too_many_inputs(m: onnx.ModelProto) -> None:
    m.graph.node[1].input.extend(["p", "p"])


def _long_name(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = m.graph.node[1].output[0] = "y" * 5000


STATIC: list[tuple[Change, str]] = [
    (_double_input, r"input 'x': float64.*convert the model to float32"),
    (_double_weight, r"initialiser 'w': float64.*convert the model to float32"),
    (_string_input, r"input 'x': string"),
    (_sequence_input, r"input 'x' is a sequence_type"),
    (_unsorted, r"Relu \(node 'make_y'\): its input 'p' is not defined before it"),
    (_cycle, r"MatMul \(node 'make_p'\): its input 'y' is not defined before it"),
    (_missing_initialiser, r"its input 'w' is not defined"),
    (_missing_output, r"output 'nowhere' is never computed"),
    (_no_output, r"no outputs"),
    (_duplicate_name, r"'p' is defined twice"),
    (_duplicate_input, r"'x' is defined twice"),
    (_duplicate_output, r"'y' is declared twice"),
    (_old_opset, r"opset 5 of ONNX's own operators; 7 to"),
    (_future_opset, r"opset 1000"),
    (_no_opset, r"opset missing"),
    (_only_another_domains_opset, r"opset missing.*only versions of 'ai.onnx.ml'"),
    (_foreign_domain, r"domain 'com.example'"),
    (_subgraph_that_reads_nothing_known, r"Relu \(2 nodes, first 'make_r'\): its input 'nowhere' is not defined"),
    (_short_weight, r"initialiser 'w': damaged"),
    (_huge_weight, r"initialiser 'w': damaged"),
    (_negative_weight, r"initialiser 'w': damaged"),
    (_external_weight, r"its data lie in another file, 'weights.bin', and a model in memory"),
    (_sparse, r"sparse initialisers"),
    (_unknown_attribute, r"attribute 'slope' is unknown"),
    (_wrong_attribute, r"attribute 'axis' is unknown or of a wrong type"),
    (_too_many_inputs, r"3 inputs; the operator takes 1$"),
]


@pytest.mark.parametrize(("change", "reason"), STATIC, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_graphs_are_refused_before_shapes_are_known(change: Change, reason: str) -> None:
    damaged = net()
    change(damaged)
    with pytest.raises(UnsupportedModel, match=reason):
        model_signature(damaged)
    with pytest.raises(UnsupportedModel, match=reason):
        compile_model(damaged, {"x": (1, 2)})


def test_a_name_too_long_for_a_program_is_refused() -> None:
    damaged = net()
    _long_name(damaged)
    with pytest.raises(UnsupportedModel, match="exceeds 1024 bytes"):
        compile_model(damaged, {"x": (1, 2)})


def one(
    op: str,
    inputs: Mapping[str, tuple[Any, tuple[int, ...]]],
    initializers: dict[str, Any] | None = None,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node whose operands are its inputs, then its initialisers."""
    operands = [*inputs, *(initializers or {})]
    return model([node(op, operands, ["y"], **attributes)], inputs, {"y": F32}, initializers, opset)


X23: dict[str, tuple[Any, tuple[int, ...]]] = {"x": (F32, (2, 3))}
CONCRETE: list[tuple[onnx.ModelProto, str]] = [
    (one("MatMul", {"a": (F32, (2, 3)), "b": (F32, (2, 3))}), "inner dimensions"),
    (one("Add", {"a": (F32, (2, 3)), "b": (F32, (2, 2))}), "do not broadcast"),
    (one("Add", {"a": (F32, (2, 3)), "b": (np.int32, (2, 3))}), "different types"),
    (one("Exp", {"x": (np.int32, (2,))}), "int32 operands are not possible"),
    (one("Reshape", X23, {"s": np.array([4, 2])}), "cannot be reshaped"),
    (one("Reshape", X23, {"s": np.array([-1, -1])}), "impossible"),
    (one("Reshape", X23, {"s": np.array([1 << 62, 1 << 62])}), "impossible"),
    (one("Reshape", {**X23, "s": (np.int64, (2,))}), "must be constant whole numbers"),
    (one("Transpose", X23, perm=[0, 0]), "no permutation"),
    (one("Concat", X23, {"w": np.ones((2, 2, 2), F32)}, axis=0), "different ranks"),
    (one("Concat", X23, {"w": np.ones((2, 2), F32)}, axis=0), "cannot be concatenated"),
    (one("Concat", X23, {"w": np.ones((2, 2), F32)}, axis=5), "axis 5"),
    (one("Softmax", X23, axis=-3), "axis -3"),
    (one("Squeeze", X23, {"axes": np.array([0])}), "not all 1"),
    (one("Slice", X23, {"s": np.array([0]), "e": np.array([1]), "a": np.array([0]), "t": np.array([0])}), "step is 0"),
    (one("Gather", X23, {"i": np.array([0.5], F32)}), "indices are"),
    (one("ReduceMax", X23, axes=[2]), "axis 2"),
    (one("ReduceMax", X23, axes=[0, 0]), "twice"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 2, 3), F32)}), "groups"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 3, 9), F32)}), "a window of 9"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 3, 3), F32)}, strides=[0]), "at least 1"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 3, 3), F32)}, strides=[1, 1]), "strides has 2 values"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 3, 3), F32)}, auto_pad="MAYBE"), "auto_pad"),
    (one("Conv", {"x": (F32, (1, 1, 2, 2, 2, 2))}, {"w": np.ones((1, 1, 1, 1, 1, 1), F32)}), "spatial dimensions"),
    (one("Conv", {"x": (F32, (1, 3, 5))}, {"w": np.ones((2, 3, 3), F32)}, pads=[1 << 40, 0]), "does not fit"),
    (one("MaxPool", {"x": (F32, (1, 1, 4))}, kernel_shape=[2], pads=[3, 0]), "only padding"),
    (one("LpPool", {"x": (F32, (1, 1, 4))}, kernel_shape=[2], p=0), "p is 0"),
    (one("Split", X23, {"s": np.array([1, 1])}), "split of 2"),
    (one("Pad", X23, {"p": np.array([1, 1])}), "pads"),
    (one("Pad", X23, {"p": np.array([0, 5, 0, 0])}, mode="reflect"), "reflect"),
    (one("Expand", X23, {"s": np.array([1 << 20, 1 << 20, 2, 3])}), "at most"),
    (one("Expand", X23, {"s": np.array([1] * 9)}), "rank 9"),
    (one("QuantizeLinear", X23, {"s": np.array(-1, F32), "z": np.array(0, np.int8)}), "positive and finite"),
    (one("QuantizeLinear", X23, {"s": np.array(np.nan, F32), "z": np.array(0, np.int8)}), "positive and finite"),
    (one("QuantizeLinear", X23, {"s": np.ones(5, F32), "z": np.zeros(5, np.int8)}), "must be one or 3 of float32"),
    (one("Relu", {"x": (F32, (1,) * 9)}), "rank 9"),
    (one("Relu", {"x": (F32, ((1 << 31) - 1, 1000))}), "bytes"),
    (one("Identity", {"x": (np.int32, (2,))}), "output 'y' is int32, declared float32"),
    (one("Div", {}, {"a": np.array([1]), "b": np.array([0])}), "constant operands"),
    (one("ConstantOfShape", {}, {"s": np.array([-1])}), "impossible"),
    (one("Range", {}, {"a": np.array(0), "b": np.array(1 << 40), "c": np.array(1)}), "elements are possible"),
    (one("Dropout", X23, {"r": np.array(0.5, F32), "t": np.array(True)}), "training"),
]


@pytest.mark.parametrize(("wrong", "reason"), CONCRETE)
def test_what_shapes_make_impossible_is_refused_with_its_reason(wrong: onnx.ModelProto, reason: str) -> None:
    model_signature(wrong)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        compile_model(wrong)
    if caught.value.op is not None:
        assert (caught.value.node, caught.value.op) == ("make_y", wrong.graph.node[0].op_type)


def test_an_int64_constant_that_the_device_cannot_hold_is_refused() -> None:
    wide = model([node("Add", ["x", "c"], ["y"])], {"x": (np.int64, (1,))}, {"y": np.int64}, {"c": np.array([1 << 31])})
    with pytest.raises(UnsupportedModel, match="do not fit 32 bits"):
        compile_model(wide)


def test_sources_of_models(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(net().SerializeToString())
    expected = compile_model(net(), {"x": (1, 2)})
    for source in (path, str(path), path.read_bytes(), read_model(path)):
        assert compile_model(read_model(source), {"x": (1, 2)}) == expected
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match="not int"):
        read_model(5)
    for junk in (b"", b"\xff\xff\xff", b"hello, this is no model"):
        with pytest.raises(UnsupportedModel, match="no ONNX model"):
            read_model(junk)


SOURCES = [
    net().SerializeToString(),
    storage_net().SerializeToString(),
    quantised_net(1, np.int8, form="qdq", per_channel=True, relu=True)[0].SerializeToString(),
    quantised_net(2, np.uint8, form="operator", per_channel=False, relu=True)[0].SerializeToString(),
]
UNKNOWN_EXTENT = 2
SMALL_ENOUGH_TO_RUN = 1 << 22


def compiles_or_is_refused(data: bytes) -> None:
    """Damaged bytes give UnsupportedModel, or a model whose program the device accepts and survives."""
    try:
        damaged = read_model(data)
        inputs = model_signature(damaged).inputs
        shapes = {info.name: [e if isinstance(e, int) else UNKNOWN_EXTENT for e in info.shape] for info in inputs}
        compiled = compile_model(damaged, shapes)
    except UnsupportedModel as error:
        assert str(error)
        return
    if compiled.constants_bytes + compiled.workspace_bytes > SMALL_ENOUGH_TO_RUN:
        return
    (entry,) = verify(compiled.image).entries
    if sum(map(align_up, entry.input_sizes)) + entry.scratch_bytes > SMALL_ENOUGH_TO_RUN:
        return
    try:
        execute_compiled(compiled, [np.zeros(size, np.uint8) for size in entry.input_sizes])
    except ProgramFault as fault:
        assert fault.message


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SOURCES), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_changed_bytes(source: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(source)
    for position, value in edits:
        data[position % len(data)] = value
    compiles_or_is_refused(bytes(data))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SOURCES), st.floats(0, 1))
def test_truncated_files(source: bytes, part: float) -> None:
    compiles_or_is_refused(source[: int(len(source) * part)])


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SOURCES), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=16))
def test_inserted_bytes(source: bytes, position: int, junk: bytes) -> None:
    at = position % len(source)
    compiles_or_is_refused(source[:at] + junk + source[at:])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    compiles_or_is_refused(data)
