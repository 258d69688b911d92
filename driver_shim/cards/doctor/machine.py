"""Checks of the machine as a whole. Each looks at one thing, opens no device and changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from driver_shim.cards.discovery import find_cards, seen_cards, visible_entries
from driver_shim.cards.doctor.checks import HostMachine, Observation, Status
from driver_shim.cards.pci_sysfs import NOIOMMU_NAME, VFIO_DRIVER, names_in, number_of, text_of
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR
from driver_shim.shared import runtime_folder as folders

ENOUGH_LOCKED_BYTES = 64 << 20
"""The SDK locks memory in steps of up to this size (`driver_shim.function.dma.LARGEST_STEP_BYTES`)."""
_CAP_IPC_LOCK = 14
"""capabilities(7): such a process locks as much as it likes."""
_NEEDED_PACKAGES = ("construct", "numpy", "ml_dtypes", "onnx")
_SHOWN_PACKAGES = ("numpy", "onnx", "onnxruntime")
_MACHINES = ("x86_64", "aarch64")
_IOMMU_OPTIONS = ("intel_iommu", "amd_iommu", "iommu", "iommu.passthrough", "arm-smmu.disable_bypass")
_GRUB = "GRUB_CMDLINE_LINUX: sudoedit /etc/default/grub\nthen: sudo update-grub && sudo reboot"
_READ_WRITE = os.R_OK | os.W_OK
_VISIBLE = "NPU_VISIBLE_DEVICES"
_WAYS, _UNSAFE = ("vfio_iommu_type1", "iommufd"), "allow_unsafe_interrupts"
_ECAP_IR = 3
"""Bit of Intel's extended capability register: the unit remaps interrupts (VT-d specification, 11.4.3)."""
_REMAPPING_OFF = ("intremap=off", "nointremap")
JOIN_GROUP = (
    "once, as udev/README.md says: sudo make install-udev\nthen log out and in after: sudo usermod -aG npu $USER"
)
"""Steps to be let at the VFIO nodes and the runtime folder."""


def versions(machine: HostMachine) -> Observation:
    """What is installed, for a bug report; whether something needed is missing."""
    kernel = text_of(machine.roots.proc / "sys/kernel/osrelease") or "unknown"
    shown = {
        "npu-sdk": machine.package_version("npu-sdk") or "not installed",
        "contract": f"{CONTRACT_MAJOR}.{CONTRACT_MINOR}",
        "Python": platform.python_version(),
        **{name: version for name in _SHOWN_PACKAGES if (version := machine.package_version(name))},
        "kernel": kernel,
    }
    text = ", ".join(f"{name} {version}" for name, version in shown.items())
    missing = [name for name in _NEEDED_PACKAGES if machine.package_version(name) is None]
    if missing:
        named = " ".join(missing)
        return Observation(Status.FAIL, f"{text}; missing: {named}", f"{sys.executable} -m pip install {named}")
    return Observation(Status.INFO, text)


def emulator(machine: HostMachine) -> Observation:
    """Whether processes can use an emulated device here."""
    kind = platform.machine()
    if sys.platform != "linux" or kind not in _MACHINES:
        return Observation(
            Status.FAIL,
            f"{sys.platform} {kind}: devices need Linux on x86-64 or AArch64",
            "go on where this prints “Linux x86_64” or “Linux aarch64”: uname -sm",
        )
    try:
        os.close(os.memfd_create("npu-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        return Observation(
            Status.FAIL,
            f"the kernel refuses shared memory (memfd_create: {error.strerror})",
            "allow it, in a container for example by: docker run --security-opt seccomp=unconfined IMAGE",
        )
    return Observation(Status.OK, 'ready: sdk.Device("emulator"), npuctl emulate')


def runtime_folder(machine: HostMachine) -> Observation:
    """Whether running devices can be published where others look."""
    folder = folders.runtime_folder(machine.environment)
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not machine.writable(there):
        return Observation(
            Status.FAIL,
            f"{folder} cannot be used: {there} cannot be written",
            "name another: export NPU_RUNTIME_DIR=$HOME/.npu",
        )
    shown = str(folder) if folder == there else f"{folder} (made when needed)"
    shared = folders.SYSTEM_FOLDER
    if folder == shared or machine.environment.get("NPU_RUNTIME_DIR"):
        return Observation(Status.OK, shown)
    if shared.is_dir():
        return Observation(Status.WARN, f"{shown}; {shared}, which all users share, cannot be written", JOIN_GROUP)
    return Observation(Status.OK, f"{shown}; this user's own, since there is no {shared}")


def card(machine: HostMachine) -> Observation:
    """Whether a card of ours is on the bus."""
    if machine.cards:
        return Observation(Status.OK, f"{len(machine.cards)} on the bus: {', '.join(machine.cards)}")
    functions = machine.roots.functions
    kin = [
        f"{name} ({number_of(functions / name / 'device') or 0:04x})"
        for name in names_in(functions)
        if number_of(functions / name / "vendor") == VENDOR_ID
    ]
    if kin:
        found = f"no device {DEVICE_ID:04x}, but others of vendor {VENDOR_ID:04x}: {', '.join(kin)}"
        remedy = f"docs/your-board.md says where the IDs are declared; see yours: lspci -nn -d {VENDOR_ID:04x}:"
        return Observation(Status.WARN, found, remedy)
    return Observation(Status.INFO, "no card on the bus: programs use an emulator (what follows is for a card)")


def iommu(machine: HostMachine) -> Observation:
    """Whether the kernel has an IOMMU in use, and if not, why."""
    sysfs = machine.roots.sys
    groups = sysfs / "kernel/iommu_groups"
    real = [name for name in names_in(groups) if text_of(groups / name / "name") != NOIOMMU_NAME]
    words = (text_of(machine.roots.proc / "cmdline") or "").split()
    options = [word for word in words if word.partition("=")[0] in _IOMMU_OPTIONS]
    if real:
        said = f" ({' '.join(options)})" if options else ""
        return Observation(Status.OK, f"on, {len(real)} group{'s' * (len(real) != 1)}{said}")
    off = " ".join(word for word in options if word.endswith("=off"))
    tables = sysfs / "firmware/acpi/tables"
    if off:
        found, remedy = f"off by the kernel's command line: {off}", f"take {off} out of {_GRUB}"
    elif (tables / "DMAR").exists():
        found, remedy = "off: the firmware has VT-d on, the kernel does not use it", f"add intel_iommu=on to {_GRUB}"
    elif (tables / "IVRS").exists():
        found, remedy = "off: the firmware has AMD-Vi on, the kernel does not use it", f"add amd_iommu=on to {_GRUB}"
    else:
        found = "off: neither kernel nor firmware tell of one"
        remedy = "switch on VT-d, AMD-Vi or SMMU: sudo systemctl reboot --firmware-setup"
    if text_of(sysfs / "module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        found += "; VFIO's no-IOMMU mode is on, which this driver does not use"
    return Observation(machine.hindrance, found, remedy)


def visible_devices(machine: HostMachine) -> Observation:
    """Whether `NPU_VISIBLE_DEVICES`, if it is set, names cards that are there."""
    entries = visible_entries(machine.environment.get(_VISIBLE))
    if entries is None:
        return Observation(Status.INFO, f"{_VISIBLE} is not set: every card is visible")
    show_all = f"unset {_VISIBLE}"
    if not entries:
        return Observation(Status.INFO, f"{_VISIBLE} is empty: no card is visible", show_all)
    seen, wrong = seen_cards(find_cards(machine.roots.functions), entries)
    if wrong:
        return Observation(Status.FAIL, "; ".join(error.message for error in wrong.values()), show_all)
    return Observation(Status.OK, ", ".join(card.bus_address for card in seen))


def interrupts(machine: HostMachine) -> Observation:
    """Whether interrupts are remapped: without that, VFIO opens a card only where it is told that this is accepted."""
    ways = [name for name in _WAYS if _has_module(machine, name)] or [_WAYS[0]]  # each has a parameter of its own
    asking = [
        name for name in ways if text_of(machine.roots.sys / f"module/{name}/parameters/{_UNSAFE}") not in ("Y", "1")
    ]
    units = machine.roots.sys / "class/iommu"
    found = (number_of(units / name / "intel-iommu/ecap") for name in names_in(units))
    capabilities = [value for value in found if value is not None]
    words = (text_of(machine.roots.proc / "cmdline") or "").split()
    off = next((word for word in words if word in _REMAPPING_OFF), None)
    if not off and capabilities and all(value >> _ECAP_IR & 1 for value in capabilities):
        return Observation(Status.OK, "the IOMMU remaps them")
    if not asking:
        return Observation(Status.INFO, f"{_UNSAFE} is set: VFIO does not ask whether they are remapped")
    if not off and not capabilities:
        return Observation(Status.INFO, "the kernel does not tell whether they are remapped")
    status = Status.WARN if machine.cards else Status.INFO
    if off:
        return Observation(status, f"not remapped, by the kernel's command line: {off}", f"take {off} out of {_GRUB}")
    now = [
        f"where you trust the card: echo 1 | sudo tee /sys/module/{name}/parameters/{_UNSAFE}"
        if _has_module(machine, name)
        else f"where you trust the card: sudo modprobe {name} {_UNSAFE}=1"
        for name in asking
    ]
    later = [f"at each boot: echo options {name} {_UNSAFE}=1 | sudo tee -a /etc/modprobe.d/npu.conf" for name in asking]
    return Observation(
        status,
        "the IOMMU cannot remap them: VFIO refuses cards (EPERM), since a card could forge any interrupt",
        "\n".join(now + later),
    )


def vfio_modules(machine: HostMachine) -> Observation:
    """Whether the kernel's VFIO is there, as modules or built in."""
    roots = machine.roots
    container = _has_module(machine, "vfio_iommu_type1") or (roots.dev / "vfio/vfio").exists()
    newer = _has_module(machine, "iommufd") or (roots.dev / "iommu").exists()
    if not (roots.drivers / VFIO_DRIVER).is_dir() and not _has_module(machine, "vfio_pci"):
        return Observation(
            machine.hindrance,
            f"{VFIO_DRIVER} is not loaded",
            f"sudo modprobe {VFIO_DRIVER}\nat each boot: echo {VFIO_DRIVER} | sudo tee /etc/modules-load.d/npu.conf",
        )
    if not container and not newer:
        return Observation(
            machine.hindrance, "neither vfio_iommu_type1 nor iommufd is loaded", "sudo modprobe vfio_iommu_type1"
        )
    ways = [name for name, there in (("type1", container), ("iommufd", newer)) if there]
    return Observation(Status.OK, f"{VFIO_DRIVER}, {', '.join(ways)}")


def vfio_nodes(machine: HostMachine) -> Observation:
    """Whether the nodes that all cards share may be opened."""
    nodes = [node for node in (machine.roots.dev / "vfio/vfio", machine.roots.dev / "iommu") if node.exists()]
    if not nodes:
        return Observation(
            machine.hindrance, "neither /dev/vfio/vfio nor /dev/iommu is there", f"sudo modprobe {VFIO_DRIVER}"
        )
    refused = [str(node) for node in nodes if not machine.access(node, _READ_WRITE)]
    allowed = [str(node) for node in nodes if str(node) not in refused]
    if not allowed:
        return Observation(machine.hindrance, f"no permission for {', '.join(refused)}", JOIN_GROUP)
    if refused:
        return Observation(Status.INFO, f"{', '.join(allowed)}; no permission for {', '.join(refused)}", JOIN_GROUP)
    return Observation(Status.OK, ", ".join(allowed))


def locked_memory(machine: HostMachine) -> Observation:
    """Whether this user may lock the memory that a card reaches."""
    process = machine.roots.proc / "self"
    if (_field(process / "status", "CapEff:", 16) or 0) >> _CAP_IPC_LOCK & 1:
        return Observation(Status.OK, "as much as there is (CAP_IPC_LOCK)")
    soft = (_line(process / "limits", "Max locked memory") or "unknown").split()[0]
    if not soft.isdecimal():
        return Observation(Status.OK if soft == "unlimited" else Status.INFO, soft)
    shown = f"{int(soft) / (1 << 20):g} MiB"
    if int(soft) >= ENOUGH_LOCKED_BYTES:
        return Observation(Status.OK, f"{shown}, the most that host buffers can take together")
    return Observation(
        machine.hindrance,
        f"only {shown} may be locked, {ENOUGH_LOCKED_BYTES >> 20} MiB are needed",
        "echo '@npu - memlock -1' | sudo tee /etc/security/limits.d/npu.conf\n"
        "log in again; this shell: sudo prlimit -p $$ --memlock=unlimited",
    )


def huge_pages(machine: HostMachine) -> Observation:
    """Whether there are huge pages, which make large host buffers faster."""
    info = machine.roots.proc / "meminfo"
    total, free = (_field(info, f"HugePages_{name}:", 10) or 0 for name in ("Total", "Free"))
    size = _field(info, "Hugepagesize:", 10)
    if total:
        return Observation(Status.INFO, f"{free} of {total} free, {size} KiB each")
    return Observation(Status.INFO, "none reserved; they are not needed", "for speed: sudo sysctl vm.nr_hugepages=64")


def lockdown(machine: HostMachine) -> Observation:
    """Whether the kernel's lockdown forbids access to BARs through sysfs."""
    text = text_of(machine.roots.sys / "kernel/security/lockdown") or "[none]"
    level = text.partition("[")[2].partition("]")[0]
    if level == "none":
        return Observation(Status.INFO, "off")
    return Observation(Status.INFO, f"{level}: the kernel refuses sysfs: addresses, pci: ones work")


def _has_module(machine: HostMachine, name: str) -> bool:
    return (machine.roots.sys / "module" / name).is_dir()


def _line(path: Path, start: str) -> str | None:
    """What follows `start` on the line that begins with it."""
    for line in (text_of(path) or "").splitlines():
        if line.startswith(start):
            return line.removeprefix(start).strip() or None
    return None


def _field(path: Path, start: str, base: int) -> int | None:
    try:
        return int((_line(path, start) or "").split()[0], base)
    except (IndexError, ValueError):
        return None
