"""Work of commands, worked out by hand; and the choice of kernels."""

from __future__ import annotations

from typing import Any

import pytest

from driver_shim.protocol.program import Command, Storage, Tensor, TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from driver_shim.protocol.types import WireType
from emulator.model.timing import Precision, Work
from emulator.model.work import program_work, work_of
from sdk.compiler import compile_model
from tests.support.models import storage_net
from tests.support.programs import window

F32, F16, INT8 = WireType.FLOAT32, WireType.FLOAT16, WireType.INT8


@pytest.mark.parametrize(
    ("kind", "dtype", "shapes", "fields", "expected"),
    [
        (CommandKind.MATMUL, F32, [(2, 3), (3, 5), (2, 5)], {}, Work(30, 4 * (6 + 15 + 10), Precision.FP32)),
        (
            CommandKind.MATMUL,
            F16,
            [(7, 3, 2), (3, 5), (7, 2, 5)],
            {"transpose_a": 1},
            Work(210, 2 * (42 + 15 + 70), Precision.FP16),
        ),
        (
            CommandKind.CONV,
            F32,
            [(1, 4, 8), (6, 2, 3), (1, 6, 6)],
            {"group": 2, **window()},
            Work(6 * 6 * 2 * 3, 4 * (32 + 36 + 36), Precision.FP32),
        ),
        (
            CommandKind.QCONV,
            INT8,
            [(1, 4, 8), (6, 4, 3), (1, 6, 6)],
            {"group": 1, **window()},
            Work(6 * 6 * 4 * 3, 32 + 72 + 36, Precision.INT8),
        ),
        (CommandKind.UNARY, F32, [(10,), (10,)], {}, Work(0, 80, Precision.FP32)),
    ],
)
def test_work_of_a_command(
    kind: CommandKind, dtype: WireType, shapes: list[tuple[int, ...]], fields: dict[str, Any], expected: Work
) -> None:
    tensors = [Tensor(TensorType(dtype, shape), Storage.WORKSPACE) for shape in shapes]
    command = Command(kind, make_attributes(kind, **fields), tuple(range(len(shapes) - 1)), (len(shapes) - 1,))
    assert work_of(command, tensors) == expected


def test_work_of_a_program_is_that_of_its_commands() -> None:
    compiled = compile_model(storage_net(), {"ids": (1, 4), "mask": (1, 4)})
    work = program_work(parse(compiled.image))
    assert len(work) == compiled.plan.commands
    assert sum(item.bytes for item in work) == compiled.plan.moved_bytes
