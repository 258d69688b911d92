"""The choice of kernels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest

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
