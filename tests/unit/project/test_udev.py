"""The udev rules speak of our IDs and of nobody else's, and the installation puts files where systemd looks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from driver_shim.protocol import config_space, debug_port
from driver_shim.shared.runtime_folder import SYSTEM_FOLDER
from tests.support.fake_host import FakeHost
from tests.support.paths import ROOT

UDEV = ROOT / "udev"
LINES = (UDEV / "70-npu.rules").read_text("utf-8").splitlines()
RULES = [line for line in LINES if line and not line.startswith("#")]
PCI_IDS = (f"0x{config_space.VENDOR_ID:04x}", f"0x{config_space.DEVICE_ID:04x}")
MODALIAS = f"pci:v{config_space.VENDOR_ID:08X}d{config_space.DEVICE_ID:08X}"
SHARED_NODES = ('KERNEL=="vfio", SUBSYSTEM=="misc"', 'KERNEL=="iommu", SUBSYSTEM=="misc"')
INSTALLED = {
    "usr/lib/udev/rules.d/70-npu.rules",
    "usr/lib/sysusers.d/npu.conf",
    "usr/lib/tmpfiles.d/npu.conf",
}


def test_the_debug_port_has_the_vendor_of_the_card() -> None:
    assert (debug_port.VENDOR_ID, debug_port.DEBUG_PORT_ID) == (config_space.VENDOR_ID, 0x4E51)


def test_every_id_in_the_rules_is_ours() -> None:
    text = "\n".join(RULES)
    assert set(re.findall(r'ATTRS?\{vendor\}=="(\w+)"', text)) == {PCI_IDS[0]}
    assert set(re.findall(r'ATTRS?\{device\}=="(\w+)"', text)) == {PCI_IDS[1]}
    assert set(re.findall(r"pci:\w+", text)) == {MODALIAS}
    assert set(re.findall(r'ATTR\{idVendor\}=="(\w+)"', text)) == {f"{debug_port.VENDOR_ID:04x}"}
    assert set(re.findall(r'ATTR\{idProduct\}=="(\w+)"', text)) == {f"{debug_port.DEBUG_PORT_ID:04x}"}


def test_what_is_given_to_the_group_is_limited_to_our_ids() -> None:
    for rule in RULES:
        ours = all(number in rule for number in PCI_IDS) or MODALIAS in rule
        usb = f"{debug_port.VENDOR_ID:04x}" in rule and f"{debug_port.DEBUG_PORT_ID:04x}" in rule
        assert ours or usb or rule.startswith(SHARED_NODES), rule


def test_each_rule_is_explained_on_the_line_above() -> None:
    for number, line in enumerate(LINES):
        if line in RULES:
            assert LINES[number - 1].startswith("# ")


def group_program(host: FakeHost) -> str:
    """The program by which the rules tell our IOMMU groups, as udev would run it for group 12 of this machine."""
    (rule,) = (rule for rule in RULES if "PROGRAM==" in rule or "PROGRAM=" in rule)
    found = re.search(r'PROGRAM="/bin/sh -c \'(.*?)\'"', rule)
    assert found is not None
    return found[1].replace("$$", "$").replace("%k", "12").replace("/sys/", f"{host.roots.sys}/")


@pytest.mark.parametrize(
    ("modalias", "driver", "ours"),
    [
        (f"{MODALIAS}sv0000B7C4sd00000001bc12sc00i00", "vfio-pci", True),
        (f"{MODALIAS}sv0000B7C4sd00000001bc12sc00i00", None, False),
        (f"{MODALIAS}sv0000B7C4sd00000001bc12sc00i00", "xdma", False),
        ("pci:v00008086d00004E50sv00008086sd00000001bc02sc00i00", "vfio-pci", False),
    ],
)
def test_a_group_is_ours_only_by_a_card_that_is_bound(
    tmp_path: Path, modalias: str, driver: str | None, ours: bool
) -> None:
    host = FakeHost(tmp_path)
    neighbour = host.add("0000:03:00.1", driver="vfio-pci", ids=(1, 1))
    host.put(neighbour / "modalias", "pci:v00000001d00000001sv00000000sd00000000bc02sc00i00")
    host.put(host.add(driver=driver) / "modalias", modalias)
    done = subprocess.run(["/bin/sh", "-c", group_program(host)], capture_output=True, text=True, check=False)
    assert (done.returncode == 0, done.stderr) == (ours, "")


def test_the_runtime_folder_is_the_one_that_the_driver_looks_into() -> None:
    lines = (UDEV / "npu.tmpfiles.conf").read_text("utf-8").splitlines()
    assert f"d {SYSTEM_FOLDER} 2770 root npu -" in lines


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_a_package_gets_files_and_nothing_else_twice_over(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            ["make", "--silent", "install-udev", f"DESTDIR={tmp_path}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert files == INSTALLED
    assert (tmp_path / "usr/lib/udev/rules.d/70-npu.rules").read_text("utf-8").splitlines() == LINES
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.conf")} == {0o644}
