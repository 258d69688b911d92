"""Builds, once per recipe, what a guest needs: Debian's QEMU, kernel and Python, and the Python packages of the SDK.

Everything lies in one cached folder named by the hash of this recipe. Needs root, mmdebstrap, mke2fs and pip.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SUITE = "trixie"
QEMU_PACKAGES = ("qemu-system-x86", "cpio")
GUEST_PACKAGES = ("linux-image-amd64", "python3", "pciutils", "udev", "kmod", "busybox-static", "iproute2")
GUEST_PYTHON = "3.13"
PYTHON_PACKAGES = (
    "construct>=2.10.68,<3",
    "numpy>=1.26,<3",
    "ml_dtypes>=0.5,<1",
    "onnx>=1.17,<2",
    "click>=8.1,<9",
    "rich>=13,<16",
    "magika==1.0.3",
    "onnxruntime==1.32.0",
    "hypothesis>=6.100,<7",
    "pytest>=8,<10",
    "pytest-timeout>=2.3,<3",
    "pytest-mock>=3.12,<4",
    "jsonschema",
)
MODULES = ("virtio_blk", "ext4", "9pnet_virtio", "9p", "vfio", "vfio_iommu_type1", "vfio_pci")
IMAGE_SIZE = "1200M"
HERE = Path(__file__).parent
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))


class Image(NamedTuple):
    """A guest that can be booted."""

    host: Path
    """Tree that holds QEMU; it runs by its own dynamic linker, nothing is installed."""
    kernel: Path
    initramfs: Path
    root: Path


def cache_folder() -> Path:
    """`$NPU_CACHE_DIR/vm`, else `.cache/vm` beside the tests."""
    base = os.environ.get("NPU_CACHE_DIR")
    return (Path(base) if base else HERE.parent.parent / ".cache") / "vm"


def build() -> Image:
    """The image of this recipe, from the cache or built. Raises CalledProcessError, OSError, RuntimeError."""
    texts = [HERE / name for name in ("recipe.py", "init.sh", "boot-guest.sh")]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in texts)).hexdigest()[:12]
    folder = cache_folder() / key
    image = Image(folder / "host", folder / "vmlinuz", folder / "initramfs", folder / "root.img")
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _bootstrap(image.host, QEMU_PACKAGES)
        guest = folder / "guest"
        _bootstrap(guest, GUEST_PACKAGES)
        assemble(guest, folder)
        (folder / "complete").touch()
    return image


def assemble(guest: Path, folder: Path) -> None:
    """Kernel, initramfs and root image in `folder` from a bootstrapped guest tree."""
    _pip_install(guest / "opt/python")
    for mount_point in ("project", "results"):
        (guest / mount_point).mkdir(exist_ok=True)
    shutil.copy(HERE / "boot-guest.sh", guest / "boot-guest")
    version = next((guest / "lib/modules").iterdir()).name
    shutil.copy(guest / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    _initramfs(guest, version, folder)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(guest), str(folder / "root.img"), IMAGE_SIZE)


def _bootstrap(target: Path, packages: tuple[str, ...]) -> None:
    mirror = _mirror()
    suites = [f"deb {mirror} {SUITE} main", f"deb {mirror} {SUITE}-backports main"]
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        '--aptopt=APT::Default-Release "' + (f"{SUITE}-backports" if packages is QEMU_PACKAGES else SUITE) + '"',
        f"--keyring={KEYRING}",
        SUITE,
        str(target),
        *suites,
    )


@functools.cache
def _mirror() -> str:
    """The Debian mirror that this machine uses. Raises RuntimeError where there is none."""
    files = [_APT[0], *sorted(_APT[1].glob("*"))] if _APT[1].is_dir() else [_APT[0]]
    for path in files:
        found = re.search(r"^(?:URIs:|deb(?: \[[^]]*])?)\s+(\S+)", path.read_text() if path.is_file() else "", re.M)
        if found:
            return found[1]
    raise RuntimeError("apt's configuration names no mirror; the guest is made of Debian packages")


def _pip_install(target: Path) -> None:
    _run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        f"--python-version={GUEST_PYTHON}",
        f"--target={target}",
        *PYTHON_PACKAGES,
    )


def _initramfs(guest: Path, version: str, folder: Path) -> None:
    stage = folder / "initramfs.d"
    (stage / "bin").mkdir(parents=True)
    (stage / "modules").mkdir()
    shutil.copy(guest / "usr/bin/busybox", stage / "bin/busybox")
    shutil.copy(HERE / "init.sh", stage / "init")
    (stage / "init").chmod(0o755)
    shown = _run("chroot", str(guest), "modprobe", "-a", "--show-depends", "-S", version, *MODULES)
    order: list[str] = []
    for line in shown.splitlines():
        kind, _, path = line.strip().partition(" ")
        if kind == "insmod" and (name := Path(path).name.removesuffix(".xz")) not in order:
            order.append(name)
            packed = guest / path.lstrip("/")
            data = subprocess.run(["xz", "-dc", str(packed)], check=True, capture_output=True).stdout
            (stage / "modules" / name).write_bytes(data)
    (stage / "modules/order").write_text("".join(f"{name}\n" for name in order))
    names = "\n".join(str(path.relative_to(stage)) for path in sorted(stage.rglob("*")))
    with (folder / "initramfs").open("wb") as packed_file:
        command = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(command, cwd=stage, input=names.encode(), stdout=packed_file, check=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
