"""The core of the contract suite: what must hold, unchanged, on every transport. Everything else is listed here.

A test of this folder that asks for a function by transport belongs to the core, unless a row below takes one transport
out and says why. Tests that name no transport look at one side alone, or start what they need themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

_PARAMETERS = ("rig", "shared_rig", "shared_device", "device", "transport")


class Row(NamedTuple):
    """Tests that cannot hold on one transport."""

    transport: str
    module: str
    test: str
    """Name of the test function; "" for all of the module."""
    parameters: str
    """What the test's parameters must contain, as its id shows them; "" for any."""
    reason: str


_SPLIT = "neither kernel nor processor hands on an access that is not naturally aligned as one"
_WHOLE = "the kernel lets a process map whole BARs, trapped or not"
_TABLE = "the hypervisor keeps the MSI-X table to itself"
_FLR = "the kernel carries every reset out as a function level reset, and restores configuration space after it"
_CLIENT = "the kernel is the device's client and stays when a program ends"

NOT_CORE = (
    Row("vfio", "test_register_access", "test_reads", "misaligned", _SPLIT),
    Row("vfio", "test_register_access", "test_reads_of_samples_elsewhere", "misaligned", _SPLIT),
    Row("vfio", "test_register_access", "test_wrong_writes_are_ignored_and_counted", "misaligned", _SPLIT),
    Row("vfio", "test_register_access", "test_wrong_writes_of_samples_elsewhere", "misaligned", _SPLIT),
    Row("vfio", "test_register_access", "test_the_console_window_takes_no_misaligned_reads", "", _SPLIT),
    Row(
        "vfio",
        "test_rings_and_doorbells",
        "test_doorbells_of_wrong_width_or_place_are_ignored_and_counted",
        "-1-4",
        _SPLIT,
    ),
    Row("vfio", "test_regions", "test_registers_and_doorbells_trap", "", _WHOLE),
    Row("vfio", "test_register_access", "test_the_msix_table_and_pending_bits_have_pages_of_their_own", "", _TABLE),
    Row("vfio", "test_reset_matrix", "test_cell", "MSI-X table", _TABLE),
    Row("vfio", "test_reset_matrix", "test_cell", "function level reset-COMMAND", _FLR),
    Row("vfio", "test_reset_matrix", "test_cell", "`DEVICE_RESET`-COMMAND", _FLR),
    Row("vfio", "test_reset_matrix", "test_the_reset_cause_register_says_what_happened", "`DEVICE_RESET`", _FLR),
    Row("vfio", "test_pre_open", "", "", _FLR),
    Row("vfio", "test_reset_matrix", "", "client lost", _CLIENT),
    Row("vfio", "test_reset_matrix", "", "power-on", "nobody can switch a card off and on"),
    Row("vfio", "test_black_box", "", "", _CLIENT),
    Row("vfio", "test_transport", "test_the_last_page_of_the_bus_can_be_mapped", "", "no IOMMU has so many addresses"),
    Row("vfio", "test_statuses", "", "unsealed", "what the kernel has pinned cannot go, sealed or not"),
)


def transport_of(item: pytest.Item) -> str | None:
    """The transport that a test runs over; None when it names none."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return next((str(parameters[name]) for name in _PARAMETERS if name in parameters), None)


def row_against(item: pytest.Item) -> Row | None:
    """The row that takes this test out of the core on its transport, if there is one."""
    transport = transport_of(item)
    name = getattr(item, "originalname", None) or item.name
    for row in NOT_CORE:
        if (row.transport, row.module) != (transport, item.path.stem):
            continue
        if row.test in ("", name) and row.parameters in item.name:
            return row
    return None
