"""The choice of kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import Activation, Cell, CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators import OPERATORS
from tests.support.needs import module_of_extra

SQUARE = TensorType(WireType.FLOAT32, (4, 4))
MATMUL = KernelRequest(
    CommandKind.MATMUL,
    make_attributes(CommandKind.MATMUL, alpha=1.0, activation=Activation.RELU),
    (SQUARE, SQUARE),
    (SQUARE,),
    (None, None),
)
GATHER = KernelRequest(
    CommandKind.GATHER,
    make_attributes(CommandKind.GATHER, axis=0),
    (SQUARE, TensorType(WireType.INT64, (1,))),
    (TensorType(WireType.FLOAT32, (1, 4)),),
    (None, None),
)


def test_golden_kernels_are_golden() -> None:
    assert prepare("golden", MATMUL).name == "golden.matmul"


def test_a_kind_without_a_faster_kernel_has_the_golden_one() -> None:
    assert prepare("numpy", MATMUL).name == "numpy.matmul"
    assert prepare("numpy", GATHER).name == "golden.gather"


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of auto, numpy, golden"):
        prepare("quick", MATMUL)


def test_auto_takes_onnxruntime_only_where_it_is_installed_and_not_barred() -> None:
    script = (
        "import sys\n"
        "from driver_shim.shared import import_guard\n"
        "if sys.argv[1] == 'barred': import_guard.install()\n"
        "from tests.unit.emulator.engines.kernels.test_choice import MATMUL\n"
        "from emulator.engines.kernels.choice import prepare\n"
        "print(prepare('auto', MATMUL).name)\n"
    )
    found = {
        how: subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True, timeout=60)
        for how in ("barred", "free")
    }
    assert found["barred"].stdout.strip() == "numpy.matmul"
    installed = importlib.util.find_spec("onnxruntime") is not None
    assert found["free"].stdout.strip() == ("onnxruntime.matmul" if installed else "numpy.matmul")


def f32(*shape: int) -> TensorType:
    return TensorType(WireType.FLOAT32, shape)


_OPEN = {"left_window": -1, "right_window": -1}
_LSTM = {"cell": Cell.LSTM, "activations": [3, 2, 2, 0, 0, 0], "alphas": [0.0] * 6, "betas": [0.0] * 6}


@pytest.mark.parametrize(
    ("kind", "fields", "inputs"),
    [
        (CommandKind.LAYER_NORM, {"axes": 0b10, "epsilon": 1e-5}, (f32(4, 8), f32(8), f32(8))),
        (CommandKind.LAYER_NORM, {"axes": 0b10, "epsilon": 1e-5, "root_mean_square": 1}, (f32(4, 8), f32(8))),
        (CommandKind.RECURRENT, _LSTM, (f32(3, 1, 4), f32(1, 8, 4), f32(1, 8, 2), f32(1, 16))),
        (CommandKind.ATTENTION, {"scale": 1.0, **_OPEN}, (f32(1, 2, 3, 4),) * 3),
        (CommandKind.ATTENTION, {"scale": 1.0, **_OPEN}, (*(f32(1, 2, 3, 4),) * 3, f32(1, 1, 1, 3))),
    ],
    ids=str,
)
def test_the_usual_forms_of_what_text_takes_have_kernels_of_every_provider(
    kind: CommandKind, fields: dict[str, Any], inputs: tuple[TensorType, ...]
) -> None:
    module_of_extra("onnxruntime", "models")
    attributes = make_attributes(kind, **fields)
    outputs = tuple(OPERATORS[kind].infer(attributes, inputs)[:1])
    request = KernelRequest(kind, attributes, inputs, outputs, (None,) * len(inputs))
    for kernels, provider in (("golden", "golden"), ("numpy", "numpy"), ("auto", "onnxruntime")):
        assert prepare(kernels, request).name == f"{provider}.{kind.name.lower()}"
