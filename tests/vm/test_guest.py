"""The SDK in a guest: an unmodified QEMU plugs the emulator in as a PCI card; VFIO and the IOMMU are Linux's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.conftest import FIRST, IOMMUFD, PATIENCE_S, REMOVED, bind, killing, last_line, prepare, program
from tests.vm.guest import HUGE_PAGES, Guest, GuestError
from tests.vm.recipe import ROOT, parts

pytestmark = [pytest.mark.vm, pytest.mark.timeout(0)]  # each wait here has a limit of its own
Note = Callable[[str], None]

SUITE_S = 1800.0
CONTRACT = ROOT / "tests/contract"
HEAVY = (
    "test_commands.py",
    "test_rings_and_doorbells.py",
    "test_regions.py",
    "test_register_access.py",
    "test_reset_matrix.py",
    "test_sdk_events.py",
    "test_sdk_queues.py",
    "test_transport.py",
)
"""Half of the contract suite's work."""
LOST_S = 30.0
"""How long a program may take to learn that its device is gone, on a loaded host."""
QEMU_UNPLUG_FAILURE = "memory_region_del_subregion: Assertion"
"""How QEMU up to 11.1.3 ends when any vfio-user device with MSI-X is unplugged."""
MOST_WAKE_UPS = 3
"""The device is woken once; before work has piled up, it may fall asleep again while the guest's processor is away."""
NOTICE_S = 1.0
"""What QEMU needs to see that a socket was closed."""
MIB_64 = 64
MOST_FDS = 64
"""Descriptors of the emulator's process with a client, whatever that has mapped."""
COMPLAINTS = re.compile(r"vfio|pci 0000:0[1-4]|pcieport|AER|BUG|WARNING|Oops|DMAR.*fault", re.IGNORECASE)
HARMLESS = re.compile(r"pciehp|Slot\(|User Level meta-driver|Enabling HDA controller|vgaarb")


# --- what the kernel and its tools make of the card -------------------------------------------------------------------


def test_lspci_reads_every_capability(guest: Guest, address: str) -> None:
    shown = guest.check(f"lspci -vvv -s {address} 2>&1", PATIENCE_S)
    for wrong in ("access denied", "Unknown", "unknown", "!!!", "<?>", "Malformed", "broken", "pcilib"):
        assert wrong not in shown, shown
    for wanted in (
        "Power Management version 3",
        "NoSoftRst+",
        "MSI-X: Enable",
        "Express (v2) Endpoint",
        "FLReset+",
        "Advanced Error Reporting",
        "Device Serial Number",
        "Kernel driver in use: vfio-pci",
        "Speed 5GT/s, Width x16",
    ):
        assert wanted in shown, shown


def test_the_kernel_has_nothing_to_complain_about(guest: Guest, address: str) -> None:
    with_card = guest.check(program("interrupts", address, address), PATIENCE_S)
    assert with_card
    log = guest.check("dmesg --level=emerg,alert,crit,err,warn", PATIENCE_S)
    lines = [line for line in log.splitlines() if COMPLAINTS.search(line) and not HARMLESS.search(line)]
    assert not lines, "\n".join(lines)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_core_of_the_contract_suite_holds_on_the_card(guest: Guest, address: str, second: str, note: Note) -> None:
    """On two cards at a time, half of the modules each: the guest has two processors."""
    modules = sorted(path.name for path in CONTRACT.glob("test_*.py"))
    halves = {address: [name for name in modules if name in HEAVY], second: [n for n in modules if n not in HEAVY]}
    command = "python3 -m pytest -q -p no:cacheprovider --timeout 300 --tb=short --durations 8"
    jobs = []
    for card, names in halves.items():
        paths = " ".join(f"tests/contract/{name}" for name in names)
        jobs.append(guest.start(f"NPU_TEST_CARD={card} {command} {paths}"))
    for ran in [guest.result(job, SUITE_S) for job in jobs]:
        note(ran.output.strip().splitlines()[-1])
        assert ran.status == 0, ran.output[-8000:]


def test_completions_interrupt_through_msix(guest: Guest, address: str) -> None:
    seen = last_line(guest.check(program("interrupts", address, address), PATIENCE_S))
    assert seen["vectors"] == 32
    assert seen["iommu"] == ("iommufd" if IOMMUFD else "type1")
    assert seen["interrupts"] >= seen["rounds"] // 2  # a completion may be there before the wait falls asleep


def test_submissions_trap_only_when_the_device_wakes_up(guest: Guest, address: str, note: Note) -> None:
    lone = 5
    seen = last_line(guest.check(program("count_traps", str(lone), address), PATIENCE_S))
    note(f"{seen['submissions']} submissions, busy: {seen['busy']}; {lone} lone ones: {seen['lone']}")
    assert seen["lone"] == {"bells": lone}
    assert set(seen["busy"]) <= {"bells", "head bells"}  # a device that sleeps wants to hear of either
    assert all(count <= MOST_WAKE_UPS for count in seen["busy"].values())


# --- faults -----------------------------------------------------------------------------------------------------------


def test_threads_carry_on_through_resets(guest: Guest, address: str, note: Note) -> None:
    seen = last_line(guest.check(program("storm", "resets 20", address), PATIENCE_S))
    note(f"{seen['resets']} resets, {seen['commands']} commands, {seen['errors']}")
    assert seen["resets"] == 20
    assert seen["commands"] > 0


def test_a_killed_client_leaves_a_card_that_works(guest: Guest, address: str, note: Note) -> None:
    job = guest.start(f"exec {program('storm', 'until-lost', address)}".replace("exec NPU", "NPU"))
    guest.wait_for_output(job, "running", PATIENCE_S)
    guest.check(killing("programs.storm"), PATIENCE_S)
    assert guest.result(job, PATIENCE_S).status != 0
    began = time.monotonic()
    seen = last_line(guest.check(program("interrupts", address, address), PATIENCE_S))
    note(f"the next client was done {time.monotonic() - began:.1f} s later")
    assert seen["vectors"] == 32


def test_a_killed_server_is_a_lost_device_and_nothing_worse(note: Note) -> None:
    """In a guest of its own, while that stands still: QEMU ends when a server is killed in the middle of a message."""
    with Guest(parts(iommufd=IOMMUFD)) as own:
        prepare(own)
        card = own.cards[FIRST]
        job = own.start(program("storm", "until-lost", bind(own, card)))
        own.wait_for_output(job, "running", PATIENCE_S)
        own.monitor.execute("stop")
        card.kill()
        time.sleep(NOTICE_S)
        own.monitor.execute("cont")
        own.wait_for_output(job, '"after"', PATIENCE_S)
        seen = _told(own, job)
        note(f"all four threads knew {seen['seconds']:.2f} s after the storm was on")


def test_a_card_that_is_taken_away_is_let_go_and_comes_back(guest: Guest, note: Note) -> None:
    where = bind(guest, guest.cards[REMOVED])
    job = guest.start(program("storm", "until-lost", where))
    guest.wait_for_output(job, "running", PATIENCE_S)
    began = time.monotonic()
    guest.check(f"echo 1 >/sys/bus/pci/devices/{where}/remove", LOST_S)
    took = time.monotonic() - began
    note(f"let go after {took:.1f} s")
    _lost(guest, job)
    assert guest.run(f"ls -d /sys/bus/pci/devices/{where}", PATIENCE_S).status != 0
    guest.check("echo 1 >/sys/bus/pci/rescan", PATIENCE_S)
    back = bind(guest, guest.cards[REMOVED])
    assert last_line(guest.check(program("interrupts", back, back), PATIENCE_S))["interrupts"] > 0


def test_an_idle_program_lets_a_card_go(guest: Guest) -> None:
    where = bind(guest, guest.cards[REMOVED])
    job = guest.start(program("hold", "0 /tmp/never idle", where))
    guest.wait_for_output(job, "holding", PATIENCE_S)
    guest.check(f"echo 1 >/sys/bus/pci/devices/{where}/remove", LOST_S)
    guest.check(f"{killing('programs.hold')}; echo 1 >/sys/bus/pci/rescan", PATIENCE_S)
    assert guest.result(job, PATIENCE_S).status != 0


def test_device_del_gets_the_card_from_the_program_that_has_it(note: Note) -> None:
    """In a guest of its own: QEMU may not survive the end of the unplugging, see docs/interop.md.

    The guest's kernel gives the card up, which QEMU needs to go on, only once the program has let it go.
    """
    with Guest(parts(iommufd=IOMMUFD)) as own:
        prepare(own)
        job = own.start(program("storm", "until-lost", bind(own, own.cards[FIRST])))
        own.wait_for_output(job, "running", PATIENCE_S)
        own.monitor.execute("device_del", {"id": own.cards[FIRST].name})
        began = time.monotonic()
        try:
            own.monitor.wait_for_event("DEVICE_DELETED", PATIENCE_S)
            note(f"unplugged after {time.monotonic() - began:.1f} s")
            _lost(own, job)
        except GuestError:
            assert QEMU_UNPLUG_FAILURE in own.console(), own.console()
            note(f"given up after {time.monotonic() - began:.1f} s; QEMU ended: {QEMU_UNPLUG_FAILURE}")


@pytest.mark.parametrize("huge_pages", [True, False], ids=["huge pages", "4 KiB pages"])
def test_64_mib_cost_the_server_neither_descriptors_nor_mappings(
    guest: Guest, address: str, huge_pages: bool, note: Note
) -> None:
    card = guest.cards[FIRST]
    guest.check(f"echo {HUGE_PAGES if huge_pages else 0} >/proc/sys/vm/nr_hugepages; rm -f /tmp/release", PATIENCE_S)
    before = card.counts()
    job = guest.start(program("hold", f"{MIB_64} /tmp/release", address))
    guest.wait_for_output(job, "holding", PATIENCE_S)
    fds, maps = card.counts()
    guest.check(f"touch /tmp/release; echo {HUGE_PAGES} >/proc/sys/vm/nr_hugepages", PATIENCE_S)
    ran = guest.result(job, PATIENCE_S)
    assert ran.status == 0, ran.output
    counts = f"{before} before, {(fds, maps)} with 64 MiB mapped"
    note(f"{ran.output.splitlines()[0]}; descriptors and mappings: {counts}")
    assert fds <= MOST_FDS
    assert maps - before[1] < 64


def _lost(guest: Guest, job: int) -> dict[str, Any]:
    """A storm that lost its device, and ended as programs do."""
    ran = guest.result(job, PATIENCE_S)
    assert ran.status == 0, ran.output
    return _told(guest, job)


def _told(guest: Guest, job: int) -> dict[str, Any]:
    """What it printed: every thread was told, and so is new work."""
    seen: dict[str, Any] = last_line(guest.output(job))
    assert (seen["errors"]["device-lost"], seen["after"]) == (4, "device-lost")
    assert seen["seconds"] < LOST_S
    return seen
