"""Which inputs and outputs of a model are one state, how that is found, and of what kind it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from driver_shim.errors import UnsupportedModel
from sdk.compiler import read_model
from sdk.compiler.graph import Graph
from sdk.compiler.states import StateKind, context_of, derived_inputs, find_states, state_infos
from sdk.compiler.states.report import state_placements
from tests.support.decoders import Concatenating, Grouping, Owning, Scattering

FLOAT = onnx.TensorProto.FLOAT
CACHE = ["batch", 2, "past", 8]


def joined(*names: tuple[str, str], shape: list[Any] = CACHE, op: str = "Concat", **attributes: Any) -> Graph:
    """A graph that joins two tokens of keys to each past."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", 2, 2, 8])]
    outputs, nodes = [], []
    for past, present in names:
        inputs.append(helper.make_tensor_value_info(past, FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(present, FLOAT, None))
        nodes.append(helper.make_node(op, [past, "x"], [present], **attributes))
    graph = helper.make_graph(nodes, "joined", inputs, outputs)
    return read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11))


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.11.value", "present_key_values.11.value"),
        ("past.0.key", "present.0.key"),
        ("past_0", "present_0"),
        ("past_key_3", "present_key_3"),
        ("past_conv.4", "present_conv.4"),
        ("cache_in.0", "cache_out.0"),
        ("key_cache.0", "key_cache.0_out"),
        ("state_in", "state_out"),
    ],
)
def test_pairs_are_found_by_the_names_that_exporters_give(past: str, present: str) -> None:
    (pair,) = find_states(joined((past, present), axis=2))
    assert (pair.past, pair.present, pair.kind, pair.found) == (past, present, StateKind.APPEND, "by name")


def test_pairs_with_other_names_are_found_by_the_node_between_them() -> None:
    (pair,) = find_states(joined(("a", "b"), axis=2))
    assert (pair.past, pair.present, pair.found) == ("a", "b", "by the nodes between them")


def test_a_pair_that_is_named_goes_before_what_names_say() -> None:
    graph = joined(("past_0", "present_1"), ("past_1", "present_0"), axis=2)
    pairs = find_states(graph, {"past_0": "present_1"})
    assert [(pair.past, pair.present, pair.found) for pair in pairs] == [
        ("past_0", "present_1", "as named"),
        ("past_1", "present_0", "by the nodes between them"),
    ]


@pytest.mark.parametrize("states", [{"nothing": "b"}, {"a": "nothing"}, {"a": "b", "x": "b"}])
def test_names_that_the_model_does_not_have_are_refused(states: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="states= names"):
        find_states(joined(("a", "b"), axis=2), states)


def test_a_configuration_beside_the_model_names_them(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["k.0"], ["new.k.0"])],
            "named",
            [helper.make_tensor_value_info("k.0", FLOAT, [1, 4])],
            [helper.make_tensor_value_info("new.k.0", FLOAT, [1, 4])],
        ),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    onnx.save(model, tmp_path / "model.onnx")
    names: dict[str, Any] = {"inputs": {"past_key_names": "k.%d"}, "outputs": {"present_key_names": "new.k.%d"}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": names}}))
    (pair,) = find_states(read_model(tmp_path / "model.onnx"))
    assert (pair.past, pair.present, pair.found) == ("k.0", "new.k.0", "by genai_config.json")
    assert pair.kind is StateKind.REPLACE


def test_a_configuration_that_is_no_json_is_refused_by_its_name(tmp_path: Path) -> None:
    onnx.save(Scattering().model(), tmp_path / "model.onnx")
    (tmp_path / "genai_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"genai_config\.json"):
        find_states(read_model(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    "config", ['{"model": 3}', '{"model": {"decoder": null}}', '{"model": {"decoder": {"inputs": []}}}']
)
def test_a_configuration_without_the_sections_that_it_might_have_says_nothing(tmp_path: Path, config: str) -> None:
    onnx.save(Scattering().model(), tmp_path / "model.onnx")
    (tmp_path / "genai_config.json").write_text(config)
    graph = read_model(tmp_path / "model.onnx")
    assert {pair.found for pair in find_states(graph)} == {"by name"}
    assert context_of(graph) is None


@pytest.mark.parametrize(
    ("name", "text", "context"),
    [
        ("genai_config.json", '{"model": {"context_length": 77}}', 77),
        ("config.json", '{"max_position_embeddings": 2048}', 2048),
        ("config.json", '{"n_positions": 1024, "vocab_size": 50257}', 1024),
        ("config.json", '{"n_positions": "many"}', None),
        ("config.json", "// of another program", None),
    ],
)
def test_files_beside_a_model_say_for_how_long_a_context_it_was_made(
    tmp_path: Path, name: str, text: str, context: int | None
) -> None:
    onnx.save(Scattering().model(), tmp_path / "model.onnx")
    (tmp_path / name).write_text(text)
    assert context_of(read_model(tmp_path / "model.onnx")) == context


def test_a_pair_of_constant_shape_without_a_joint_is_no_state_unless_its_name_says_so() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Tanh", ["image"], ["picture"]),
            helper.make_node("Tanh", ["past_conv.0"], ["present_conv.0"]),
        ],
        "pairs",
        [helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("image", "past_conv.0")],
        [helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("picture", "present_conv.0")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    (pair,) = find_states(read_model(model))
    assert (pair.past, pair.kind) == ("past_conv.0", StateKind.REPLACE)


def test_a_circular_scatter_is_a_ring_of_as_many_tokens_as_its_past_has() -> None:
    graph = joined(("past_0", "present_0"), shape=["batch", 2, 16, 8], op="TensorScatter", axis=2, mode="circular")
    (pair,) = find_states(graph)
    assert (pair.kind, pair.ring) == (StateKind.RING, 16)


@pytest.mark.parametrize(
    ("form", "derived"),
    [
        (Scattering, {"write_indices", "nonpad_kv_seqlen"}),
        (Grouping, {"attention_mask"}),
        (Owning, {"position_ids"}),
        (Concatenating, {"attention_mask", "position_ids"}),
    ],
)
def test_inputs_that_follow_from_the_states_are_known(form: Any, derived: set[str]) -> None:
    graph = read_model(form().model())
    assert set(derived_inputs(graph, find_states(graph))) == derived


def test_a_model_without_states_has_no_inputs_that_follow_from_them() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["attention_mask"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, [1, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [1, 4])],
    )
    plain = read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11))
    assert derived_inputs(plain, find_states(plain)) == {}


def test_the_report_says_what_was_found_and_what_a_token_takes() -> None:
    graph = read_model(Scattering().model())
    pairs = find_states(graph)
    lines = state_placements(graph, pairs)
    assert lines[0].node == "past_key_values.0.key -> present.0.key"
    assert lines[0].reason == "append, found by name, 64 bytes a token"


def test_heads_of_no_number_are_refused_by_the_name_of_the_state() -> None:
    graph = joined(("past_0", "present_0"), shape=["batch", "heads", "past", 8], axis=2)
    pairs = find_states(graph)
    with pytest.raises(UnsupportedModel, match=r"'past_0' -> 'present_0'.*'heads'"):
        state_infos(graph, pairs)
    (line,) = state_placements(graph, pairs)
    assert "'heads' has to be a number" in str(line.reason)
