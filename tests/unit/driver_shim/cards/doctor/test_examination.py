"""What the doctor finds on machines that lack one thing each, and that the remedy is a command."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from driver_shim.cards.doctor import cards as doctor_cards
from driver_shim.cards.doctor import checks as findings
from driver_shim.cards.doctor import machine as doctor_machine
from driver_shim.cards.doctor.checks import HostMachine, Observation, Status
from driver_shim.cards.doctor.examination import CARD_CHECKS, MACHINE_CHECKS, examine
from driver_shim.function import dma
from driver_shim.protocol.config_space import VENDOR_ID
from driver_shim.shared import runtime_folder
from tests.support.fake_host import CARD, SECOND, FakeHost

BARS = (
    "0x00000000fe000000 0x00000000fe00ffff 0x0000000000040200\n"
    "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    "0x00000000fe010000 0x00000000fe02ffff 0x0000000000040200\n"
    "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    "0x0000380000000000 0x00003803ffffffff 0x000000000014220c\n"
)
GIB_4 = 1 << 32


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """A machine on which everything is right, with one card."""
    host = FakeHost(tmp_path)
    folder = host.add(driver="vfio-pci")
    host.put(folder / "resource", BARS)
    for which in ("current", "max"):
        host.put(folder / f"{which}_link_speed", "16.0 GT/s PCIe")
        host.put(folder / f"{which}_link_width", "16")
    host.put(folder / "power_state", "D0")
    host.put(host.roots.proc / "cmdline", "root=/dev/sda1 intel_iommu=on quiet")
    host.put(host.roots.proc / "meminfo", "HugePages_Total: 64\nHugePages_Free: 32\nHugepagesize: 2048 kB")
    host.put(host.roots.proc / "sys/kernel/osrelease", "6.12.0")
    host.put(host.roots.proc / "self/limits", limits("unlimited"))
    host.put(host.roots.proc / "self/status", "CapEff:\t0000000000000000")
    return host


def limits(soft: str) -> str:
    return (
        f"Limit                     Soft Limit           Hard Limit\nMax locked memory         {soft} unlimited bytes"
    )


@pytest.fixture
def machine(host: FakeHost, tmp_path: Path) -> HostMachine:
    return HostMachine(
        host.roots, (CARD,), {"NPU_RUNTIME_DIR": str(tmp_path)}, lambda path, mode: True, lambda name: "1.0"
    )


def refusing(*names: str) -> Callable[[Path, int], bool]:
    """os.access for a user who may not use nodes of these names."""
    return lambda path, mode: path.name not in names


def test_nothing_is_wrong_with_a_machine_where_everything_is_right(machine: HostMachine) -> None:
    findings = list(examine(machine))
    assert [finding.name for finding in findings] == [*MACHINE_CHECKS, *CARD_CHECKS]
    assert {finding.status for finding in findings} == {Status.OK, Status.INFO}
    assert {finding.device for finding in findings} == {None, f"pci:{CARD}"}


def test_the_cards_named_are_examined_and_no_others(host: FakeHost, machine: HostMachine) -> None:
    host.add(SECOND)
    both = replace(machine, cards=(CARD, SECOND))
    assert {finding.device for finding in examine(both, [SECOND])} == {None, f"pci:{SECOND}"}


def test_a_failure_of_the_machine_is_only_news_where_there_is_no_card(host: FakeHost, machine: HostMachine) -> None:
    (host.roots.drivers / "vfio-pci").rmdir()
    assert doctor_machine.vfio_modules(machine).status is Status.FAIL
    assert doctor_machine.vfio_modules(replace(machine, cards=())).status is Status.INFO


# --- the machine -------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_pip(machine: HostMachine) -> None:
    lacking = replace(machine, package_version=lambda name: None if name == "onnx" else "1.0")
    found = doctor_machine.versions(lacking)
    assert found.status is Status.FAIL
    assert str(found.remedy).endswith("-m pip install onnx")
    assert "kernel 6.12.0" in found.found


def test_no_card_is_no_failure(host: FakeHost, machine: HostMachine) -> None:
    host.put(host.roots.functions / CARD / "vendor", "0x8086")
    found = doctor_machine.card(replace(machine, cards=()))
    assert found == Observation(
        Status.INFO, "no card on the bus: programs use an emulator (what follows is for a card)"
    )


def test_a_board_with_our_vendor_but_another_device_id_is_seen(host: FakeHost, machine: HostMachine) -> None:
    host.add(SECOND, ids=(VENDOR_ID, 0x4E52))
    (host.roots.functions / CARD / "vendor").write_text("0x1234")
    found = doctor_machine.card(replace(machine, cards=()))
    assert (found.status, f"{SECOND} (4e52)" in found.found) == (Status.WARN, True)


def test_the_iommu_is_on_where_there_are_groups(machine: HostMachine) -> None:
    assert doctor_machine.iommu(machine) == Observation(Status.OK, "on, 1 group (intel_iommu=on)")


@pytest.mark.parametrize(
    ("options", "table", "found", "step"),
    [
        ("quiet intel_iommu=off", "DMAR", "command line: intel_iommu=off", "take intel_iommu=off out of"),
        ("quiet", "DMAR", "VT-d", "add intel_iommu=on to"),
        ("quiet", "IVRS", "AMD-Vi", "add amd_iommu=on to"),
        ("quiet", "FACP", "neither kernel nor firmware", "sudo systemctl reboot --firmware-setup"),
    ],
)
def test_why_the_iommu_is_off(
    host: FakeHost, machine: HostMachine, options: str, table: str, found: str, step: str
) -> None:
    host.put(host.roots.sys / "kernel/iommu_groups/12/name", "vfio-noiommu")
    host.put(host.roots.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
    host.put(host.roots.sys / f"firmware/acpi/tables/{table}", "")
    host.put(host.roots.proc / "cmdline", options)
    answer = doctor_machine.iommu(machine)
    assert answer.status is Status.FAIL
    assert found in answer.found
    assert "no-IOMMU mode" in answer.found
    assert step in str(answer.remedy)


def test_a_built_in_vfio_needs_no_module(host: FakeHost, machine: HostMachine) -> None:
    assert doctor_machine.vfio_modules(machine) == Observation(Status.OK, "vfio-pci, type1")
    host.node("iommu")
    assert doctor_machine.vfio_modules(machine) == Observation(Status.OK, "vfio-pci, type1, iommufd")


def test_vfio_without_any_iommu_back_end(host: FakeHost, machine: HostMachine) -> None:
    (host.roots.dev / "vfio/vfio").unlink()
    assert doctor_machine.vfio_modules(machine).remedy == "sudo modprobe vfio_iommu_type1"
    (host.roots.sys / "module/iommufd").mkdir(parents=True)
    assert doctor_machine.vfio_modules(machine).found == "vfio-pci, iommufd"


def test_one_shared_node_is_enough(host: FakeHost, machine: HostMachine) -> None:
    host.node("iommu")
    assert doctor_machine.vfio_nodes(replace(machine, access=refusing("iommu"))).status is Status.INFO
    refused = doctor_machine.vfio_nodes(replace(machine, access=refusing("iommu", "vfio")))
    assert refused.status is Status.FAIL
    assert "sudo usermod -aG npu $USER" in str(refused.remedy)
    for name in ("vfio/vfio", "iommu"):
        (host.roots.dev / name).unlink()
    assert doctor_machine.vfio_nodes(machine).remedy == "sudo modprobe vfio-pci"


@pytest.mark.parametrize(
    ("soft", "capabilities", "status"),
    [
        ("unlimited", 0, Status.OK),
        (str(64 << 20), 0, Status.OK),
        (str(8 << 20), 0, Status.FAIL),
        (str(8 << 20), 1 << 14, Status.OK),
    ],
)
def test_the_limit_of_locked_memory(
    host: FakeHost, machine: HostMachine, soft: str, capabilities: int, status: Status
) -> None:
    host.put(host.roots.proc / "self/limits", limits(soft))
    host.put(host.roots.proc / "self/status", f"Name:\tpython\nCapEff:\t{capabilities:016x}")
    found = doctor_machine.locked_memory(machine)
    assert found.status is status
    assert ("sudo prlimit" in str(found.remedy)) == (status is Status.FAIL)


def test_the_driver_locks_no_more_at_once_than_the_doctor_asks_for() -> None:
    assert doctor_machine.ENOUGH_LOCKED_BYTES >= dma.LARGEST_STEP_BYTES


def test_huge_pages_are_worth_knowing(host: FakeHost, machine: HostMachine) -> None:
    assert doctor_machine.huge_pages(machine).found == "32 of 64 free, 2048 KiB each"
    host.put(host.roots.proc / "meminfo", "HugePages_Total: 0")
    assert "sudo sysctl vm.nr_hugepages=" in str(doctor_machine.huge_pages(machine).remedy)


def test_lockdown_is_named_by_its_level(host: FakeHost, machine: HostMachine) -> None:
    assert doctor_machine.lockdown(machine).found == "off"
    host.put(host.roots.sys / "kernel/security/lockdown", "none [integrity] confidentiality")
    assert doctor_machine.lockdown(machine).found.startswith("integrity: ")


def test_the_runtime_folder(machine: HostMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_machine.runtime_folder(machine).status is Status.OK
    monkeypatch.setattr(runtime_folder, "SYSTEM_FOLDER", tmp_path / "shared")
    own = replace(machine, environment={"XDG_RUNTIME_DIR": str(tmp_path / "later")})
    assert doctor_machine.runtime_folder(own).status is Status.OK
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    unshared = doctor_machine.runtime_folder(own)
    assert unshared.status is Status.WARN
    assert "sudo usermod" in str(unshared.remedy)
    refused = doctor_machine.runtime_folder(replace(machine, writable=lambda folder: False))
    assert (refused.status, str(tmp_path) in refused.found) == (Status.FAIL, True)


def test_a_folder_that_only_seems_writable_is_found_out(machine: HostMachine, tmp_path: Path) -> None:
    """Root has access to /proc, in which nobody can make a file."""
    for named in ("/proc", "/proc/nosuch"):
        found = doctor_machine.runtime_folder(replace(machine, environment={"NPU_RUNTIME_DIR": named}))
        assert (found.status, found.found) == (Status.FAIL, f"{named} cannot be used: /proc cannot be written")
    before = list(tmp_path.iterdir())
    assert findings.writable(tmp_path)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("variable", "status", "found"),
    [
        (None, Status.INFO, "every card is visible"),
        ("", Status.INFO, "no card is visible"),
        ("03:00.0", Status.OK, CARD),
        ("0, garbage", Status.FAIL, "'garbage', which fits no card"),
        ("1", Status.FAIL, "'1', which fits no card"),
    ],
)
def test_what_the_variable_shows(machine: HostMachine, variable: str | None, status: Status, found: str) -> None:
    there = {} if variable is None else {"NPU_VISIBLE_DEVICES": variable}
    answer = doctor_machine.visible_devices(replace(machine, environment=there))
    assert (answer.status, found in answer.found) == (status, True)
    assert (answer.remedy == "unset NPU_VISIBLE_DEVICES") == (status is Status.FAIL or variable == "")


IR, NO_IR = "f020df", "f020d7"
TYPE1 = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"


@pytest.mark.parametrize(
    ("units", "unsafe", "option", "status", "found"),
    [
        ([IR, IR], "N", "quiet", Status.OK, "remaps"),
        ([IR, NO_IR], "N", "quiet", Status.WARN, "cannot remap"),
        ([NO_IR], "Y", "quiet", Status.INFO, "is set"),
        ([IR], "N", "intremap=off", Status.WARN, "command line: intremap=off"),
        ([], "N", "quiet", Status.INFO, "does not tell"),
        ([], "Y", "quiet", Status.INFO, "is set"),
    ],
)
def test_whether_interrupts_are_remapped(
    host: FakeHost, machine: HostMachine, units: list[str], unsafe: str, option: str, status: Status, found: str
) -> None:
    for number, capabilities in enumerate(units):
        host.put(host.roots.sys / f"class/iommu/dmar{number}/intel-iommu/ecap", capabilities)
    host.put(host.roots.sys / TYPE1, unsafe)
    host.put(host.roots.proc / "cmdline", option)
    answer = doctor_machine.interrupts(machine)
    assert (answer.status, found in answer.found) == (status, True)
    if status is Status.WARN:
        assert doctor_machine.interrupts(replace(machine, cards=())).status is Status.INFO


def test_unsafe_interrupts_are_allowed_by_a_command(host: FakeHost, machine: HostMachine) -> None:
    host.put(host.roots.sys / "class/iommu/dmar0/intel-iommu/ecap", NO_IR)
    unloaded = str(doctor_machine.interrupts(machine).remedy).splitlines()[0]
    assert unloaded.endswith(": sudo modprobe vfio_iommu_type1 allow_unsafe_interrupts=1")
    host.put(host.roots.sys / TYPE1, "N")
    loaded = str(doctor_machine.interrupts(machine).remedy).splitlines()[0]
    assert loaded.endswith(f": echo 1 | sudo tee /sys/{TYPE1}")
    host.put(host.roots.sys / TYPE1, "Y")
    assert doctor_machine.interrupts(machine).status is Status.INFO
    newer = TYPE1.replace("vfio_iommu_type1", "iommufd")  # the driver prefers it, and it asks again
    host.put(host.roots.sys / newer, "N")
    assert str(doctor_machine.interrupts(machine).remedy).splitlines() == [
        f"where you trust the card: echo 1 | sudo tee /sys/{newer}",
        "at each boot: echo options iommufd allow_unsafe_interrupts=1 | sudo tee -a /etc/modprobe.d/npu.conf",
    ]


def test_an_unfit_machine_is_told_by_a_command(machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    found = doctor_machine.emulator(machine)
    assert (found.status, str(found.remedy).endswith(": uname -sm")) == (Status.FAIL, True)


# --- a card ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [None, "xdma"])
def test_a_card_without_vfio_is_to_be_bound(host: FakeHost, machine: HostMachine, driver: str | None) -> None:
    host.add(SECOND, driver=driver)
    found = doctor_cards.driver(machine, SECOND)
    assert (found.status, found.remedy) == (Status.FAIL, f"sudo npuctl bind -d pci:{SECOND}")
    assert str(driver or "no driver") in found.found


def test_the_group_must_be_free_of_kernel_drivers(host: FakeHost, machine: HostMachine) -> None:
    assert doctor_cards.iommu_group(machine, CARD) == Observation(Status.OK, "12, alone in it")
    host.add("0000:00:1c.0", driver="pcieport", ids=(1, 1), pci_class=0x060400)
    assert doctor_cards.iommu_group(machine, CARD).status is Status.OK
    host.add("0000:03:00.1", driver="snd", ids=(1, 2))
    assert doctor_cards.iommu_group(machine, CARD) == Observation(
        Status.FAIL,
        "kernel drivers hold other functions of group 12: 0000:03:00.1 (snd)",
        "echo 0000:03:00.1 | sudo tee /sys/bus/pci/drivers/snd/unbind",
    )


def test_a_card_outside_any_group(host: FakeHost, machine: HostMachine) -> None:
    host.add(SECOND, group=None)
    found = doctor_cards.iommu_group(machine, SECOND)
    assert (found.status, found.remedy) == (Status.FAIL, "see why: sudo dmesg | grep -i -e dmar -e iommu")
    shutil.rmtree(host.roots.sys / "kernel/iommu_groups")
    host.put(host.roots.sys / "firmware/acpi/tables/DMAR", "")
    found = doctor_cards.iommu_group(machine, SECOND)
    assert found.remedy == doctor_machine.iommu(machine).remedy
    assert str(found.remedy).endswith("sudo update-grub && sudo reboot")


def test_either_way_to_the_card_is_enough(host: FakeHost, machine: HostMachine) -> None:
    dev = host.roots.dev
    assert doctor_cards.access(machine, CARD).found == f"{dev}/vfio/vfio and {dev}/vfio/12"
    (host.roots.functions / CARD / "vfio-dev/vfio0").mkdir(parents=True)
    closed = replace(machine, access=refusing("12"))
    refused = doctor_cards.access(closed, CARD)
    assert refused.status is Status.FAIL
    assert f"no permission for {dev}/vfio/12" in refused.found
    assert f"{dev}/iommu is not there" in refused.found
    host.node("iommu")
    host.node("vfio/devices/vfio0")
    assert doctor_cards.access(closed, CARD).found == f"{dev}/iommu and {dev}/vfio/devices/vfio0"


def test_there_is_nothing_to_open_before_the_card_is_bound(host: FakeHost, machine: HostMachine) -> None:
    host.add(SECOND)
    assert doctor_cards.access(machine, SECOND).status is Status.INFO


def test_the_ranges_of_the_card(machine: HostMachine) -> None:
    found = doctor_cards.bars(machine, CARD)
    assert found == Observation(Status.OK, "BAR0 64 KiB, BAR2 128 KiB, BAR4 16 GiB")


def test_a_range_without_an_address(host: FakeHost, machine: HostMachine) -> None:
    lines = BARS.splitlines()
    lines[4] = f"0x0000000000000000 0x{4 * GIB_4 - 1:016x} 0x000000000014220c"
    host.put(host.roots.functions / CARD / "resource", "\n".join(lines))
    found = doctor_cards.bars(machine, CARD)
    assert (found.status, found.found) == (Status.FAIL, "BAR4 (16 GiB) has no address")
    assert "sudo update-grub && sudo reboot" in str(found.remedy)


def test_a_board_whose_ranges_are_too_small(host: FakeHost, machine: HostMachine) -> None:
    host.put(host.roots.functions / CARD / "resource", "0x1000 0x1fff 0x40200")
    found = doctor_cards.bars(machine, CARD)
    assert (found.status, found.found) == (Status.FAIL, "BAR0 has 4 KiB of 64 KiB; BAR2 has 0 bytes of 8 KiB")
    assert str(found.remedy).endswith(f": sudo lspci -vv -s {CARD}")


def test_a_link_below_what_it_can_is_a_warning(host: FakeHost, machine: HostMachine) -> None:
    assert doctor_cards.link(machine, CARD) == Observation(Status.OK, "x16 at 16 GT/s")
    host.put(host.roots.functions / CARD / "current_link_width", "4")
    found = doctor_cards.link(machine, CARD)
    assert found.status is Status.WARN
    assert found.found.startswith("x4 at 16 GT/s, though x16 at 16 GT/s is possible")


def test_a_slower_connector_is_no_fault_of_the_card(host: FakeHost, machine: HostMachine) -> None:
    host.put(host.roots.functions / CARD / "current_link_speed", "8.0 GT/s PCIe")
    host.put(host.roots.functions / "max_link_speed", "8.0 GT/s PCIe")
    host.put(host.roots.functions / "max_link_width", "16")
    found = doctor_cards.link(machine, CARD)
    assert (found.status, "all that its connector can" in found.found) == (Status.INFO, True)


def test_a_link_of_which_nothing_is_told(host: FakeHost, machine: HostMachine) -> None:
    host.put(host.roots.functions / CARD / "max_link_speed", "Unknown")
    assert doctor_cards.link(machine, CARD).status is Status.INFO


def test_who_uses_the_card(host: FakeHost, machine: HostMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_cards.user(machine, CARD).found == "nobody"
    held = host.process(41, "python train.py", str(host.roots.dev / "vfio/12"))
    assert doctor_cards.user(machine, CARD).found == "used by process 41 (python train.py)"
    real = os.listdir

    def hide(path: Path) -> list[str]:
        if path == held / "fd":
            raise PermissionError
        return real(path)

    monkeypatch.setattr(os, "listdir", hide)
    found = doctor_cards.user(machine, CARD)
    assert found.found == "nobody that you can see; 1 processes are not yours to look into"
    assert found.remedy == f"sudo npuctl doctor -d pci:{CARD}"


def test_the_power_state(machine: HostMachine) -> None:
    assert doctor_cards.power(machine, CARD) == Observation(Status.INFO, "D0")
