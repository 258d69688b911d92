"""Real programs on both kinds of engines: weights come from device memory at every run, data faults have a status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import Binding, Command, Storage, Tensor, TensorType, build, make_attributes
from driver_shim.protocol.program_commands import Activation, BinaryFunction, CommandKind, UnaryFunction
from driver_shim.protocol.types import WireType
from emulator.chip.device_memory import DeviceMemory
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.engines.job import EngineJob, Engines, JobResult, Outcome, ProgramImage
from emulator.engines.kernels.blocks import PlacedRequest
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import NamedKernel
from emulator.engines.pool import EnginePool
from emulator.model.verify import verify
from tests.support.engine_jobs import collect
from tests.support.programs import one_entry

CONSTANTS = 1 << 16
DEPTH, WIDTH = 32, 16
WEIGHT_BYTES = 4 * DEPTH * WIDTH


def dense_program() -> bytes:
    """tanh(relu(x @ w)) for x [4, DEPTH]."""
    tensors = (
        Tensor(TensorType(WireType.FLOAT32, (4, DEPTH)), Storage.INPUT),
        Tensor(TensorType(WireType.FLOAT32, (DEPTH, WIDTH)), Storage.CONSTANT),
        Tensor(TensorType(WireType.FLOAT32, (4, WIDTH)), Storage.WORKSPACE, 0),
        Tensor(TensorType(WireType.FLOAT32, (4, WIDTH)), Storage.OUTPUT),
    )
    commands = (
        Command(
            CommandKind.MATMUL,
            make_attributes(CommandKind.MATMUL, alpha=1.0, beta=1.0, activation=Activation.RELU),
            (0, 1),
            (2,),
        ),
        Command(CommandKind.UNARY, make_attributes(CommandKind.UNARY, function=UnaryFunction.TANH), (2,), (3,)),
    )
    return build(one_entry(tensors, commands, (Binding("x", 0),), (Binding("y", 3),), 4 * 4 * WIDTH))


def quotient_program() -> bytes:
    """a / b for int64 scalars."""
    scalar = TensorType(WireType.INT64, ())
    tensors = (Tensor(scalar, Storage.INPUT), Tensor(scalar, Storage.INPUT), Tensor(scalar, Storage.OUTPUT))
    attributes = make_attributes(CommandKind.BINARY, function=BinaryFunction.DIV)
    command = Command(CommandKind.BINARY, attributes, (0, 1), (2,))
    return build(one_entry(tensors, (command,), (Binding("a", 0), Binding("b", 1)), (Binding("y", 2),)))


def as_image(container: bytes, *constants: int) -> ProgramImage:
    return ProgramImage.of(container, verify(container), constants)


@pytest.fixture()
def memory() -> Iterator[DeviceMemory]:
    memory = DeviceMemory(1 << 20)
    yield memory
    memory.close()


@pytest.fixture(params=["inline numpy", "inline golden", "pool numpy"])
def engines(request: pytest.FixtureRequest, memory: DeviceMemory) -> Iterator[Engines]:
    where, kernels = request.param.split()
    inline = where == "inline"
    engines: Engines = InlineEngines(memory.view, executor, kernels) if inline else EnginePool(memory.fd, 1, kernels)
    yield engines
    engines.close()


def run(engines: Engines, number: int, inputs: tuple[int, ...]) -> JobResult:
    engines.start(EngineJob(number, 0, 1, inputs))
    (result,) = collect(engines)
    return result


def test_a_program_reads_the_weights_that_lie_in_device_memory_now(engines: Engines, memory: DeviceMemory) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((4, DEPTH)).astype(np.float32)
    w = random.standard_normal((DEPTH, WIDTH)).astype(np.float32)
    memory.view[: x.nbytes] = x.tobytes()
    memory.view[CONSTANTS : CONSTANTS + WEIGHT_BYTES] = w.tobytes()
    engines.load(1, as_image(dense_program(), CONSTANTS))

    def answer(number: int) -> Any:
        result = run(engines, number, (0,))
        assert result.outcome is Outcome.OK
        output = np.frombuffer(bytes(result.outputs[0]), np.float32).reshape(4, WIDTH)
        engines.release(result)
        return output

    first = answer(1)
    np.testing.assert_allclose(first, np.tanh(np.maximum(x @ w, 0)), rtol=1e-5, atol=1e-6)
    w[:, 0] = 1.0
    memory.view[CONSTANTS : CONSTANTS + WEIGHT_BYTES] = w.tobytes()
    second = answer(2)
    np.testing.assert_allclose(second, np.tanh(np.maximum(x @ w, 0)), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(first, second)


def test_reports_name_the_kernel_of_each_command(engines: Engines) -> None:
    engines.load(1, as_image(dense_program(), CONSTANTS))
    result = run(engines, 1, (0,))
    assert [report.kernel for report in result.report] == [f"{engines.kernels}.matmul", f"{engines.kernels}.unary"]


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        (7, -2, Status.SUCCESS),
        (1, 0, Status.DIVISION_BY_ZERO),
        (1 << 31, 1, Status.VALUE_OUT_OF_RANGE),
        (1, -(1 << 40), Status.VALUE_OUT_OF_RANGE),
    ],
)
def test_data_that_a_command_cannot_work_on_has_a_status(
    engines: Engines, memory: DeviceMemory, a: int, b: int, status: Status
) -> None:
    memory.view[0:8] = a.to_bytes(8, "little", signed=True)
    memory.view[64:72] = b.to_bytes(8, "little", signed=True)
    engines.load(1, as_image(quotient_program()))
    result = run(engines, 1, (0, 64))
    assert result.status is status
    if status is Status.SUCCESS:
        assert int.from_bytes(bytes(result.outputs[0]), "little", signed=True) == -3  # rounded towards zero
    else:
        assert result.outcome is Outcome.FAULT and result.command_index == 0 and "BINARY" in result.message


def test_a_kernel_that_raises_costs_its_command_and_the_engine_lives(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines = InlineEngines(memory.view, executor, "golden")
    engines.load(1, as_image(dense_program(), CONSTANTS))

    trouble = [TypeError("return arrays must be of ArrayType")]

    def broken(inputs: Any, outputs: Any) -> None:
        if trouble:
            raise trouble.pop()

    def chosen(kernels: str, commands: list[PlacedRequest], private: set[int]) -> list[NamedKernel]:
        asked = [command.request for command in commands]
        unary = NamedKernel("golden.unary", broken)
        return [unary if request.kind is CommandKind.UNARY else prepare(kernels, request) for request in asked]

    with monkeypatch.context() as patch:
        patch.setattr(executor, "prepare_all", chosen)
        result = run(engines, 1, (0,))
    assert (result.outcome, result.status, result.command_index) == (Outcome.FAULT, Status.EXECUTION_FAULT, 1)
    assert result.message == "command 1 (UNARY): TypeError: return arrays must be of ArrayType"
    assert "golden.unary raised" in caplog.text  # a kernel's mistake is ours: with its traceback in the log
    assert run(engines, 2, (0,)).outcome is Outcome.OK
