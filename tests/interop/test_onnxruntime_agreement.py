"""Programs on golden and fast kernels against onnxruntime, which runs in a process of its own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import magika
import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from emulator.engines.job import ProgramFault
from sdk.compiler import compile_model, read_model
from sdk.compiler.graph import Graph
from tests.support.models import model, node, quantised_net, storage_net
from tests.support.onnxruntime_peer import PeerError, run_many
from tests.support.onnxruntime_peer import run as peer
from tests.support.programs import execute, execute_compiled, run

KERNELS = ("golden", "numpy")
MAGIKA_FOLDER = Path(magika.__file__).parent
MAGIKA = MAGIKA_FOLDER / "models" / "standard_v3_3" / "model.onnx"
TOKENS, PADDING = 2048, 256
EXACT_UINT8 = {"session.x64quantprecision": "1"}
"""Without it onnxruntime's uint8 sums saturate at 16 bits on processors without VNNI."""


@functools.cache
def magika_model() -> Graph:
    return read_model(MAGIKA)


def file_tokens(data: bytes) -> NDArray[np.int32]:
    """Beginning and end of a file as the classifier takes them: bytes, padded with 256."""
    tokens = np.full(TOKENS, PADDING, np.int32)
    head, tail = data[: TOKENS // 2].lstrip(), data[-TOKENS // 2 :].rstrip()
    tokens[: len(head)] = np.frombuffer(head, np.uint8)
    tokens[TOKENS - len(tail) :] = np.frombuffer(tail, np.uint8)
    return tokens


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_magika_on_random_tokens(batch: int) -> None:
    x = np.random.default_rng(batch).integers(0, PADDING + 1, (batch, TOKENS), dtype=np.int32)
    expected = peer(MAGIKA, {"bytes": x})["target_label"]
    compiled = compile_model(magika_model(), {"bytes": x.shape})
    for kernels in KERNELS:
        scores = run(compiled, {"bytes": x}, kernels)["target_label"]
        assert np.abs(scores - expected).max() <= 1e-4
        assert (scores.argmax(1) == expected.argmax(1)).all()


def test_magika_on_real_files() -> None:
    # One by one: on a nearly empty file onnxruntime's own answers differ by 8e-4 between batch sizes (the variance of
    # nearly equal numbers), while a batch of one is within 1e-5 of exact arithmetic.
    files = [*sorted(MAGIKA_FOLDER.rglob("*.py")), *sorted(MAGIKA_FOLDER.rglob("*.json")), MAGIKA]
    inputs = [{"bytes": file_tokens(path.read_bytes()).reshape(1, TOKENS)} for path in files]
    answers = run_many([(MAGIKA, arrays) for arrays in inputs])
    compiled = compile_model(magika_model(), {"bytes": (1, TOKENS)})
    for arrays, answer in zip(inputs, answers, strict=True):
        expected = answer["target_label"]
        for kernels in KERNELS:
            scores = run(compiled, arrays, kernels)["target_label"]
            assert np.abs(scores - expected).max() <= 1e-4
            assert scores.argmax() == expected.argmax()


def test_magika_with_another_weight_gives_another_answer() -> None:
    x = np.random.default_rng(9).integers(0, PADDING + 1, (1, TOKENS), dtype=np.int32)
    compiled = compile_model(magika_model(), {"bytes": x.shape})
    wanted = next(array for name, array in magika_model().initializers.items() if name.endswith("Const_24:0"))
    constants = [constant.array for constant in compiled.constants]
    (at,) = [
        i for i, array in enumerate(constants) if array.size == wanted.size and (array.ravel() == wanted.ravel()).all()
    ]
    tampered = constants[at].copy()
    tampered.view(np.uint8).reshape(-1)[3] ^= 0x40  # the highest exponent bit of a float
    (honest,), _ = execute(compiled.image, [x], constants=constants)
    (altered,), _ = execute(compiled.image, [x], constants=[*constants[:at], tampered, *constants[at + 1 :]])
    assert np.abs(honest - altered).max() > 1e-4


CASES = [
    pytest.param(
        activation, weights, per_channel, relu, id=f"{activation.__name__}-{per_channel=}-{relu=}-{weights.__name__}"
    )
    for activation, weights in ((np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8))
    for per_channel in (False, True)
    for relu in (False, True)
]
SEEDS = range(24)


@pytest.mark.parametrize(("activation", "weights", "per_channel", "relu"), CASES)
def test_quantised_nets_are_equal_to_the_bit(activation: Any, weights: Any, per_channel: bool, relu: bool) -> None:
    options = {"per_channel": per_channel, "relu": relu, "weights": weights}
    nets = [quantised_net(seed, activation, form="operator", **options) for seed in SEEDS]
    config = EXACT_UINT8 if activation is np.uint8 else {}
    answers = run_many([(m.SerializeToString(), {"x": x}) for m, x in nets], config)
    for seed, (operator, x), answer in zip(SEEDS, nets, answers, strict=True):
        qdq, _ = quantised_net(seed, activation, form="qdq", **options)
        for form in (operator, qdq):
            compiled = compile_model(form)
            for kernels in KERNELS:
                np.testing.assert_array_equal(run(compiled, {"x": x}, kernels)["y"], answer["y"])


def test_the_qdq_form_runs_on_quantised_commands_alone() -> None:
    qdq, x = quantised_net(1, np.int8, form="qdq", per_channel=True, relu=True)
    _, report = execute_compiled(compile_model(qdq), [x])
    assert [r.kernel for r in report] == ["golden.qconv", "golden.copy", "golden.qmatmul"]


def test_onnxruntime_refuses_the_exact_switch_for_int8() -> None:
    operator, x = quantised_net(1, np.int8, form="operator", per_channel=False, relu=False)
    with pytest.raises(PeerError):
        peer(operator.SerializeToString(), {"x": x}, EXACT_UINT8)


@pytest.mark.parametrize("batch", [1, 3])
def test_int64_and_bool_go_through_the_device(batch: int) -> None:
    net = storage_net()
    rng = np.random.default_rng(batch)
    inputs = {"ids": rng.integers(-14, 10, (batch, 4)), "mask": rng.integers(0, 2, (batch, 4)).astype(np.bool_)}
    expected = peer(net.SerializeToString(), inputs)
    compiled = compile_model(net, {name: array.shape for name, array in inputs.items()})
    assert [info.dtype for info in compiled.outputs] == ["int64", "int64", "bool", "int64"]
    for kernels in KERNELS:
        for name, array in run(compiled, inputs, kernels).items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("ids", "status", "command"),
    [
        (1 << 31, Status.VALUE_OUT_OF_RANGE, 0),
        ((1 << 31) - 1, Status.VALUE_OUT_OF_RANGE, 0),
        (-(1 << 31) - 1, Status.VALUE_OUT_OF_RANGE, 0),
        (10, Status.INDEX_OUT_OF_RANGE, 1),
        (-15, Status.INDEX_OUT_OF_RANGE, 1),
    ],
)
def test_int64_values_beyond_32_bits_and_wild_indices_are_faults(ids: int, status: Status, command: int) -> None:
    compiled = compile_model(storage_net(), {"ids": (1, 4), "mask": (1, 4)})
    inputs = {"ids": np.full((1, 4), ids), "mask": np.ones((1, 4), np.bool_)}
    for kernels in KERNELS:
        with pytest.raises(ProgramFault) as caught:
            run(compiled, inputs, kernels)
        assert (caught.value.status, caught.value.command_index) == (status, command)


def test_a_float_net_of_common_layers() -> None:
    rng = np.random.default_rng(5)

    def real(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    net = model(
        [
            node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Add", ["c1", "b1"], ["a1"]),
            node("Relu", ["a1"], ["r1"]),
            node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Conv", ["p1", "w2", "b2"], ["c2"], group=8, auto_pad="SAME_UPPER"),
            node("Clip", ["c2", "zero", "six"], ["r2"]),
            node("AveragePool", ["r2"], ["p2"], kernel_shape=[2, 2], ceil_mode=1),
            node("GlobalAveragePool", ["p2"], ["g"]),
            node("Flatten", ["g"], ["f"]),
            node("Gemm", ["f", "w3", "b3"], ["l"], transB=1, alpha=0.5, beta=2.0),
            node("Softmax", ["l"], ["y"], axis=1),
            node("Split", ["l", "sizes"], ["left", "right"], axis=1),
            node("Concat", ["right", "left"], ["z"], axis=1),
        ],
        {"x": (np.float32, ("n", 3, 32, 31))},
        {"y": np.float32, "z": np.float32},
        {
            "w1": real(8, 3, 3, 3), "b1": real(8, 1, 1), "w2": real(8, 1, 3, 3), "b2": real(8),
            "w3": real(10, 8), "b3": real(10), "zero": np.float32(0), "six": np.float32(6),
            "sizes": np.array([3, 7], np.int64),
        },
    )  # fmt: skip
    x = real(2, 3, 32, 31)
    expected = peer(net.SerializeToString(), {"x": x})
    compiled = compile_model(net, {"x": x.shape})
    for kernels in KERNELS:
        for name, array in run(compiled, {"x": x}, kernels).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
