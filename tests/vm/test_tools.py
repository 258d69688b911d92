"""Operators' tools on a real kernel: binding, diagnosis, permissions, who holds a card, looking without a reset."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.vm.conftest import PATIENCE_S, last_line, npuctl, program
from tests.vm.guest import Guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(0)]  # each wait here has a limit of its own
Note = Callable[[str], None]

DEMO_S = 240.0
RESET_S = 20.0
"""A reset takes a tenth of a second, and the host may be loaded."""
WORKER = "runuser -u worker -- env PYTHONPATH=$PYTHONPATH"
"""Begins a command that an unprivileged user of the group npu runs."""


@pytest.fixture(scope="module")
def worker(guest: Guest, address: str) -> str:
    """An unprivileged user, after the udev rules were installed as documented."""
    guest.check("sh udev/install.sh && udevadm settle", PATIENCE_S)
    guest.check("id worker 2>/dev/null || useradd --create-home --groups npu worker", PATIENCE_S)
    return WORKER


def test_the_udev_rules_are_valid(guest: Guest, worker: str) -> None:
    guest.check("udevadm verify --resolve-names=late /usr/lib/udev/rules.d/70-npu.rules", PATIENCE_S)
    assert guest.check("stat -c '%a %G' /run/npu", PATIENCE_S).strip() == "2770 npu"


def test_an_unprivileged_user_works_with_the_card(guest: Guest, address: str, worker: str, note: Note) -> None:
    seen = last_line(guest.check(f"{worker} {program('interrupts', address, address)}", PATIENCE_S))
    note(f"as a member of npu, through {seen['iommu']}")
    assert seen["interrupts"] > 0
    nobody = guest.run(
        f"useradd nobody2 2>/dev/null; runuser -u nobody2 -- env PYTHONPATH=$PYTHONPATH "
        f"{program('interrupts', address, address)}",
        PATIENCE_S,
    )
    assert nobody.status != 0
    assert "PermissionDenied" in nobody.output
    assert "udev" in nobody.output


def test_the_limit_of_locked_memory_is_named(guest: Guest, address: str, worker: str) -> None:
    ran = guest.run(f"{worker} sh -c 'ulimit -l 8192; {program('hold', '64 /tmp/never', address)}'", PATIENCE_S)
    assert ran.status != 0
    assert "HostMemoryLimit" in ran.output
    assert "8388608 bytes" in ran.output
    assert "ulimit -l" in ran.output


def test_binding_goes_both_ways_and_twice_is_once(guest: Guest, second: str) -> None:
    at = f"pci:{second}"
    unbind, bind = f"unbind --yes -d {at}", f"bind --yes -d {at}"
    runs = npuctl(guest, bind, unbind, unbind, f"regs -d {at}", bind)
    refused, on = runs[3:]
    assert [code for code, _ in runs] == [0, 0, 0, 3, 0]
    changes = [(d["driver_before"], d["driver"], d["changed"]) for d in (run[1]["devices"][0] for run in runs[:3])]
    assert changes == [("vfio-pci", "vfio-pci", False), ("vfio-pci", None, True), (None, None, False)]
    assert f"npuctl bind -d {at}" in refused[1]["errors"][0]["remedy"]
    assert on[1]["devices"][0]["driver"] == "vfio-pci"


def test_a_card_in_use_is_neither_unbound_nor_opened_nor_reset(guest: Guest, second: str) -> None:
    at = f"pci:{second}"
    job = guest.start(program("hold", "0 /tmp/let-go", second))
    guest.wait_for_output(job, "holding", PATIENCE_S)
    *refused, (_, listed) = npuctl(guest, f"unbind --yes -d {at}", f"reset --yes -d {at}", f"regs -d {at}", "list")
    for code, document in refused:
        (error,) = document["errors"]
        assert (code, error["code"]) == (1, "device-busy")
        assert "programs.hold" in error["message"]
    (entry,) = [device for device in listed["devices"] if device["address"] == at]
    assert "programs.hold" in entry["holder"]["command"]
    waiting = guest.start(f'NPU_DEVICE={at} python3 -c \'import sdk; sdk.Device(when_busy="wait"); print("mine")\'')
    time.sleep(2)
    assert guest.output(waiting) == ""
    guest.check("touch /tmp/let-go", PATIENCE_S)
    assert guest.result(job, PATIENCE_S).status == 0
    assert guest.result(waiting, PATIENCE_S) == (0, "mine\n")
    guest.check("rm /tmp/let-go", PATIENCE_S)


def test_doctor_finds_a_healthy_machine_and_what_is_wrong_with_it(guest: Guest, address: str, second: str) -> None:
    look = f"doctor -d pci:{second}"
    (code, healthy), _, (ill, sick) = npuctl(guest, f"doctor -d pci:{address}", f"unbind --yes -d pci:{second}", look)
    assert code == 0
    assert {check["status"] for check in healthy["checks"]} <= {"ok", "info", "warn"}
    failed = [check for check in sick["checks"] if check["status"] == "fail"]
    assert (ill, [check["name"] for check in failed]) == (5, ["driver"])
    mend = failed[0]["remedy"].removeprefix("sudo npuctl ")
    assert mend.startswith("bind")
    assert [code for code, _ in npuctl(guest, f"{mend} --yes", look)] == [0, 0]


def test_sysfs_shows_registers_without_a_reset(guest: Guest, address: str) -> None:
    look = f"regs reset_history reset_cause scratch=0x1234 -d sysfs:{address}"
    first, second = (document["devices"][0] for _, document in npuctl(guest, look, look))
    assert first["opened_with_reset"] is False
    history = [[r["value"] for r in seen["registers"] if r["name"] != "scratch"] for seen in (first, second)]
    assert history[0] == history[1]
    refused = guest.run(f"python3 -c \"import sdk; sdk.Device('sysfs:{address}').queue()\"", PATIENCE_S)
    assert "neither DMA nor interrupts" in refused.output


def test_the_first_free_card_is_taken_and_an_emulator_never_in_place_of_one(
    guest: Guest, address: str, second: str
) -> None:
    show = "python3 -c 'import sdk; print(sdk.Device().address)'"
    cards = sorted([address, second])
    assert guest.check(show, PATIENCE_S).strip() == f"pci:{cards[0]}"
    assert guest.check(f"NPU_VISIBLE_DEVICES=1 {show}", PATIENCE_S).strip() == f"pci:{cards[1]}"
    hidden = guest.run(f"NPU_VISIBLE_DEVICES= {show}", PATIENCE_S)
    assert hidden.status != 0 and "DeviceNotFound" in hidden.output
    job = guest.start(program("hold", "0 /tmp/let-go", cards[0]))
    guest.wait_for_output(job, "holding", PATIENCE_S)
    assert guest.check(show, PATIENCE_S).strip() == f"pci:{cards[1]}"
    guest.check("touch /tmp/let-go", PATIENCE_S)
    assert guest.result(job, PATIENCE_S).status == 0
    guest.check("rm /tmp/let-go", PATIENCE_S)


def test_the_demo_classifies_on_the_card(guest: Guest, address: str, note: Note) -> None:
    shown = guest.check(f"NPU_DEVICE=pci:{address} python3 -m npuctl demo README.md pyproject.toml udev 2>&1", DEMO_S)
    note(next(line for line in shown.splitlines() if line.startswith("All ")))
    assert f"pci:{address}" in shown


def test_npuctl_knows_the_card(guest: Guest, address: str) -> None:
    at = f"pci:{address}"
    runs = npuctl(guest, "list", f"regs identity -d {at}", f"reset --yes -d {at}", f"info -d {at}")
    assert [code for code, _ in runs] == [0] * 4
    listed, registers, reset, known = (document["devices"] for _, document in runs)
    (entry,) = [device for device in listed if device["address"] == at]
    assert (entry["driver"], entry["emulated"], entry["link_width_lanes"]) == ("vfio-pci", False, 16)
    assert registers[0]["opened_with_reset"] is True
    assert registers[0]["registers"][0]["value"] == "0x55504e31"
    assert reset[0]["wall_reset_seconds"] < RESET_S
    assert (known[0]["opened"], known[0]["opened_with_reset"]) == (False, False)
    assert "flr" in known[0]["pre_open"]["reset_causes"]
