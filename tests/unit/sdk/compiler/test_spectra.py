"""Fourier transforms against numpy's, windows and mel bins against the reference evaluator's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
Array = NDArray[Any]
NEWEST = onnx.defs.onnx_opset_version()


def single(
    op: str, inputs: dict[str, Array], constants: dict[str, Array], opset: int = NEWEST, **attributes: Any
) -> onnx.ModelProto:
    operands = [*inputs, *constants]
    types = {name: (array.dtype.type, array.shape) for name, array in inputs.items()}
    return model([node(op, operands, ["y"], **attributes)], types, {"y": F32}, constants, opset=opset)


def compiled(op: str, inputs: dict[str, Array], constants: dict[str, Array], **attributes: Any) -> Array:
    return run(compile_model(single(op, inputs, constants, **attributes)), inputs)["y"]


def pairs(values: Array) -> Array:
    """Complex numbers as real and imaginary parts in a last dimension."""
    return np.stack([values.real, values.imag], -1).astype(F32)


def close(result: Array, expected: Array) -> None:
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [9, 8, 5, 12])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_transform_along_any_axis_of_any_length(axis: int, length: int) -> None:
    x = real(4, 9, 3, 1)
    operands = {"n": np.array(length), "a": np.array(axis)}
    close(compiled("DFT", {"x": x}, operands), pairs(np.fft.fft(x[..., 0], length, axis)))


@pytest.mark.parametrize("inverse", [0, 1])
def test_transform_of_complex_numbers(inverse: int) -> None:
    x = real(2, 7, 2)
    transform = np.fft.ifft if inverse else np.fft.fft
    close(compiled("DFT", {"x": x}, {}, inverse=inverse), pairs(transform(x[..., 0] + 1j * x[..., 1], axis=1)))


@pytest.mark.parametrize("length", [7, 8])
def test_one_side_forwards_and_back(length: int) -> None:
    x = real(2, length, 1)
    half = compiled("DFT", {"x": x}, {}, onesided=1)
    close(half, pairs(np.fft.rfft(x[..., 0], axis=1)))
    whole = compiled("DFT", {"x": half}, {"n": np.array(length)}, inverse=1, onesided=1)
    close(whole, x)


def test_the_axis_is_an_attribute_before_opset_20() -> None:
    x = real(2, 5, 3, 1)
    close(compiled("DFT", {"x": x}, {}, opset=17, axis=2), pairs(np.fft.fft(x[..., 0], axis=2)))
    close(compiled("DFT", {"x": x}, {}, opset=17), pairs(np.fft.fft(x[..., 0], axis=1)))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("window_is", ["constant", "input", "absent"])
def test_short_time_transform(parts: int, window_is: str) -> None:
    x, window = real(2, 20, parts), np.hanning(8).astype(F32)
    inputs, constants = {"x": x}, {"step": np.array(3)}
    attributes: dict[str, Any] = {"onesided": int(parts == 1)}
    names = ["x", "step", "w" if window_is != "absent" else "", "n"]
    if window_is == "input":
        inputs["w"] = window
    elif window_is == "constant":
        constants["w"] = window
    constants["n"] = np.array(8)
    types = {name: (array.dtype.type, array.shape) for name, array in inputs.items()}
    net = model([node("STFT", names, ["y"], **attributes)], types, {"y": F32}, constants, opset=17)
    signal = x[..., 0] if parts == 1 else x[..., 0] + 1j * x[..., 1]
    frames = np.stack([signal[:, i : i + 8] for i in range(0, 13, 3)], 1)
    weighed = frames if window_is == "absent" else frames * window
    expected = np.fft.rfft(weighed, axis=2) if parts == 1 else np.fft.fft(weighed, axis=2)
    close(run(compile_model(net), inputs)["y"], pairs(expected))


@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op: str, periodic: int) -> None:
    net = single(op, {}, {"n": np.array(10)}, opset=17, periodic=periodic)
    close(run(compile_model(net), {})["y"], ReferenceEvaluator(net).run(None, {})[0])


@pytest.mark.parametrize("edges", [(0, 4096), (300, 2000)])
def test_mel_bins(edges: tuple[float, float]) -> None:
    constants = {
        **{name: np.array(value) for name, value in (("bins", 8), ("length", 64), ("rate", 8192))},
        **{name: np.array(value, F32) for name, value in zip(("low", "high"), edges, strict=True)},
    }
    net = single("MelWeightMatrix", {}, constants, opset=17)
    close(run(compile_model(net), {})["y"], ReferenceEvaluator(net).run(None, {})[0])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (single("DFT", {"x": real(2, 5, 3)}, {}), "last dimension is 1"),
        (single("DFT", {"x": real(2, 5, 1)}, {"n": np.array(5), "a": np.array(2)}), "real and imaginary parts"),
        (single("DFT", {"x": real(2, 5, 2)}, {}, onesided=1), "onesided takes a real signal"),
        (single("DFT", {"x": real(2, 5, 1)}, {"n": np.array(0)}), "a transform of 0"),
        (single("DFT", {"x": real(1, 9000, 1)}, {}), "its matrix may have"),
        (single("STFT", {"x": real(2, 5, 1)}, {"s": np.array(0)}, opset=17), "frames of 5 every"),
        (single("HannWindow", {}, {"n": np.array(-1)}), "a window of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(net: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net)
