"""The contract suite runs unchanged on every transport: tests ask for `rig` (bare function) or `device` (opened)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import Device
from tests.contract.core import row_against, transport_of
from tests.support.bus_client import BusClient
from tests.support.rigs import RIGS, TRANSPORTS, Rig, process_rig

FOLDER = Path(__file__).parent


@pytest.fixture(params=TRANSPORTS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A function just powered on."""
    with RIGS[request.param]() as opened:
        yield opened


@pytest.fixture(params=TRANSPORTS, scope="module")
def shared_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device shared by the tests of a module."""
    with RIGS[request.param]() as opened, opened.device() as device:
        yield device


@pytest.fixture
def device(shared_device: Device) -> Device:
    """A device just reset."""
    shared_device.reset()
    return shared_device


@pytest.fixture(params=TRANSPORTS, scope="session")
def shared_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A function, with a core if it can, shared by all tests of a worker that use it bare; `bus` resets it between."""
    with process_rig(core="auto") if request.param == "vfio-user" else RIGS[request.param]() as opened:
        yield opened


@pytest.fixture
def bus(shared_rig: Rig) -> Iterator[BusClient]:
    """A client of a function that is as after power-on, but for what survives resets: each client leaves it so."""
    client = BusClient(shared_rig.transport)
    yield client
    client.close()


@pytest.fixture
def npu_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged from here on. Events of earlier tests that failed unseen say so when they are collected: now."""
    gc.collect()
    return caplog


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot hold on its transport; on a card, run what names the card's transport and nothing else."""
    on_card = TRANSPORTS == ("vfio",)
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        if FOLDER not in item.path.parents:
            kept.append(item)
            continue
        apart = row_against(item) is not None or (on_card and transport_of(item) is None)
        (left if apart else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
