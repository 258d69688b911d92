"""A machine in a folder: sysfs, /proc and /dev as far as binding and diagnosis look at them, and a kernel that acts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from driver_shim.cards.pci_sysfs import VFIO_DRIVER, Roots
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID

CARD = "0000:03:00.0"
SECOND = "0000:04:00.0"


class FakeHost:
    """Starts with IOMMU and vfio-pci, and no function on the bus."""

    def __init__(self, folder: Path) -> None:
        self.roots = Roots(folder / "sys", folder / "proc", folder / "dev")
        self.writes: list[tuple[str, str]] = []
        """Attributes written, by their path under /sys, with what was written."""
        self.failing: dict[str, int] = {}
        """Attribute, by the last two parts of its path → the errno that a write to it fails with."""
        self.refused: set[str] = set()
        """Functions that vfio-pci's probe refuses without an error, as the kernel does."""
        for name in (VFIO_DRIVER, "xdma"):
            (self.roots.drivers / name).mkdir(parents=True)
        self.roots.functions.mkdir(parents=True)
        self.roots.proc.mkdir()
        (self.roots.dev / "vfio/devices").mkdir(parents=True)
        self.node("vfio/vfio")

    def add(
        self,
        address: str = CARD,
        *,
        driver: str | None = None,
        group: int | None = 12,
        ids: tuple[int, int] = (VENDOR_ID, DEVICE_ID),
        pci_class: int = 0x120000,
    ) -> Path:
        """Plug a function in."""
        folder = self.roots.functions / address
        folder.mkdir()
        self.put(folder / "vendor", f"0x{ids[0]:04x}")
        self.put(folder / "device", f"0x{ids[1]:04x}")
        self.put(folder / "class", f"0x{pci_class:06x}")
        self.put(folder / "driver_override", "(null)")
        if group is not None:
            members = self.roots.sys / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(folder)
            (folder / "iommu_group").symlink_to(members.parent)
        if driver is not None:
            self._attach(address, driver)
        return folder

    def process(self, pid: int, command: str, *links: str, fdinfo: str = "") -> Path:
        """Start a process that has files open."""
        folder = self.roots.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        for number, link in enumerate(links):
            (folder / "fd" / str(number)).symlink_to(link)
            (folder / "fdinfo" / str(number)).write_text(fdinfo)
        (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
        return folder

    def node(self, name: str) -> Path:
        """Make a device node (an ordinary file here) and return its path."""
        path = self.roots.dev / name
        path.touch()
        return path

    def put(self, path: Path, text: str) -> None:
        """Let a file say something."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def driver(self, address: str = CARD) -> str | None:
        """What drives a function now."""
        link = self.roots.functions / address / "driver"
        return link.resolve().name if link.exists() else None

    def override(self, address: str = CARD) -> str:
        """What driver_override says now."""
        return (self.roots.functions / address / "driver_override").read_text().strip()

    def write(self, path: Path, text: str) -> None:
        """Write an attribute as the kernel would take it."""
        if code := self.failing.get("/".join(path.parts[-2:])):
            raise OSError(code, os.strerror(code), str(path))
        self.writes.append((str(path.relative_to(self.roots.sys)), text))
        if path.name == "driver_override":
            path.write_text((text.strip() or "(null)") + "\n")
        elif path.name == "unbind":
            assert self.driver(text) == path.parent.name
            self._detach(text)
        elif path.name == "bind":
            if self.override(text) not in ("(null)", path.parent.name):
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), str(path))
            self._attach(text, path.parent.name)
        elif path.name == "drivers_probe":
            wanted = self.override(text)
            if wanted != "(null)" and self.driver(text) is None and text not in self.refused:
                self._attach(text, wanted)
        else:
            raise AssertionError(f"nothing is known of {path}")

    def _attach(self, address: str, driver: str) -> None:
        folder = self.roots.functions / address
        (self.roots.drivers / driver).mkdir(exist_ok=True)
        (folder / "driver").symlink_to(self.roots.drivers / driver)
        if driver == VFIO_DRIVER and (folder / "iommu_group").exists():
            self.node(f"vfio/{(folder / 'iommu_group').resolve().name}")

    def _detach(self, address: str) -> None:
        (self.roots.functions / address / "driver").unlink()
