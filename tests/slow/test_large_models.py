"""A model larger than 2 GiB, in one tensor: mapped, sent in pieces, and never in this process's own memory."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import sdk
from driver_shim.protocol.commands import ResetCause
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.function.function import PciFunction
from emulator.model.profile import load_profile
from sdk.device import on_transport
from tests.support.needs import require_memory
from tests.support.waiting import PATIENCE_S

DEPTH, COLUMNS = 1 << 14, 36 << 10
SIZE = 4 * DEPTH * COLUMNS
"""2.25 GiB."""
NEEDED = 3 * SIZE
"""The file's pages, the device's memory, and room."""
OWN_BYTES = 128 << 20
"""What a load may take of this process's own memory."""
SET = {(0, 0): 1.0, (5, 7): 2.0, (DEPTH // 2, COLUMNS - 1): 3.0, (DEPTH - 1, COLUMNS - 1): 4.0}
"""The weights that are not 0: the file is sparse."""


def kilobytes(path: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    assert found, field
    return int(found[1]) << 10


@pytest.fixture
def roomy() -> Iterator[sdk.Device]:
    """A device with memory for the weights, in this process."""
    require_memory(NEEDED)
    profile = dataclasses.replace(load_profile("generic"), memory_bytes=4 << 30)
    function = PciFunction(Chip(profile, lambda memory: InlineEngines(memory.view, executor, "numpy")))
    transport = InProcessTransport(function, ResetCause.DEVICE_RESET)
    try:
        with on_transport(transport, timeout=PATIENCE_S) as device:
            yield device
    finally:
        transport.close()
        function.close()


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    data = tmp_path / "weights.bin"
    with data.open("wb") as file:
        file.truncate(SIZE)
        for (row, column), value in SET.items():
            os.pwrite(file.fileno(), np.float32(value).tobytes(), 4 * (row * COLUMNS + column))
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[DEPTH, COLUMNS])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=data.name)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", extent])
        for name, extent in (("x", DEPTH), ("y", COLUMNS))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "large", [x], [y], [weights])
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
def test_a_tensor_of_more_than_2_gib_reaches_the_device_in_pieces(roomy: sdk.Device, model_path: Path) -> None:
    before = kilobytes("/proc/self/status", "RssAnon")
    most = 0

    def tell(_done: int, _of: int) -> None:
        nonlocal most
        most = max(most, kilobytes("/proc/self/status", "RssAnon"))

    loaded = roomy.load(model_path, shapes={"x": [(1, DEPTH)]}, progress=tell)
    assert 0 < most < before + OWN_BYTES
    x = np.arange(1, DEPTH + 1, dtype=np.float32).reshape(1, DEPTH)
    expected = np.zeros((1, COLUMNS), np.float32)
    for (row, column), value in SET.items():
        expected[0, column] += x[0, row] * value
    np.testing.assert_array_equal(loaded(x)["y"], expected)
