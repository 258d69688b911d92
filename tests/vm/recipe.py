"""Makes, once per recipe, what a guest needs: QEMU, a root image with Python and its packages, and kernels.

Everything comes from Debian's and PyPI's packages and lies in a cache folder, each part under the hash of its recipe.
Needs root, mmdebstrap, mke2fs and pip; `kernel_with_iommufd` also a compiler (see `BUILD_PACKAGES`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support import debian
from tests.support.debian import STEP_S, SUITE, bootstrap, cached, recipe_key, require_tools, run

RECIPE = 1
"""Grows when parts are made in another way from the same packages: those in the cache are then made anew."""
HOST_PACKAGES = ("qemu-system-x86", "cpio")
GUEST_PACKAGES = (
    "linux-image-amd64",
    "python3",
    "pciutils",
    "udev",
    "systemd",
    "kmod",
    "busybox-static",
    "iproute2",
    "util-linux",
    "passwd",
    "usbip",
    "usbutils",
    "dfu-util",
)
GUEST_PYTHON = "3.13"
KERNEL_SOURCE = "linux-source-7.2"
BUILD_PACKAGES = ("build-essential", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "kmod", "cpio")
"""What building a kernel takes on this machine."""
MODULES = ("virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p")
"""What the guest needs to find its root file system; it loads everything else itself."""
SIGNATURE_TOOLS = ("cryptography",)
TEST_TOOLS = ("hypothesis", "jsonschema", "pytest")
"""Packages of the extra `dev` that begin with these run in the guest too."""
IMAGE_SIZE = "1500M"
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Parts(NamedTuple):
    """What a guest boots from."""

    host: Path
    """Tree that holds QEMU and cpio; they run by its own dynamic linker, nothing is installed."""
    root: Path
    """Image of the root file system."""
    busybox: Path
    kernel: Path
    modules: Path
    """Folder of modules to load before the root file system is there, with their order in `order`."""


def cache_folder() -> Path:
    """Where guests are kept."""
    return debian.cache_folder() / "vm"


def parts(*, iommufd: bool = False) -> Parts:
    """A guest of this recipe, from the cache or made now. Raises CalledProcessError, OSError, RuntimeError."""
    host = _part("host", _key(*HOST_PACKAGES), _make_host)
    packages = python_packages()
    guest = _part("guest", _key(*GUEST_PACKAGES, GUEST_PYTHON, IMAGE_SIZE, *MODULES, *packages), _make_guest)
    kernel = guest
    if iommufd:
        config = (HERE / "kernel-iommufd.config").read_text()
        kernel = _part("kernel", _key(KERNEL_SOURCE, config), _make_kernel)
    return Parts(host, guest / "root.img", guest / "busybox", kernel / "vmlinuz", kernel / "modules")


def python_packages() -> list[str]:
    """Requirements of what runs in the guest: of the SDK, the demo, USB, signatures and the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [wanted for wanted in extras["dev"] if wanted.startswith(TEST_TOOLS)]
    signatures = [wanted for wanted in extras["firmware"] if wanted.startswith(SIGNATURE_TOOLS)]
    return [*project["dependencies"], *extras["demo"], *extras["usb"], *signatures, *tools]


def _key(*parts: str) -> str:
    return recipe_key(str(RECIPE), SUITE, *parts)


def _part(name: str, key: str, make: Callable[[Path], None]) -> Path:
    def make_with_tools(folder: Path) -> None:
        require_tools("mmdebstrap", "mke2fs", "xz", "chroot", purpose="make a guest")
        make(folder)

    return cached(cache_folder(), name, key, make_with_tools)


def _make_host(folder: Path) -> None:
    bootstrap(folder, HOST_PACKAGES, backports=True)


def _make_guest(folder: Path) -> None:
    tree = folder / "tree"
    bootstrap(tree, GUEST_PACKAGES)
    _pip_install(tree / "opt/python")
    run("chroot", tree, "python3", "-m", "compileall", "-q", "/opt/python", "/usr/lib/python3")
    for mount_point in ("project", "exchange"):
        (tree / mount_point).mkdir()
    version = next((tree / "lib/modules").iterdir()).name
    shutil.copy(tree / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    shutil.copy(tree / "usr/bin/busybox", folder / "busybox")
    _unpack_modules(tree, version, folder / "modules")
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, folder / "root.img", IMAGE_SIZE)
    shutil.rmtree(tree)


def _make_kernel(folder: Path) -> None:
    """A kernel that has iommufd, which Debian's have not; everything is built in."""
    if not all(shutil.which(tool) for tool in ("make", "gcc", "flex", "bison", "bc")):
        raise RuntimeError(f"building a kernel takes: apt-get install {' '.join(BUILD_PACKAGES)}")
    tree = folder / "tree"
    bootstrap(tree, (KERNEL_SOURCE,), backports=True)
    source = folder / KERNEL_SOURCE
    run("tar", "-C", folder, "-xf", tree / f"usr/src/{KERNEL_SOURCE}.tar.xz")
    run("make", "-C", source, "-s", "tinyconfig")
    with (source / ".config").open("a") as config:
        config.write((HERE / "kernel-iommufd.config").read_text())
    run("make", "-C", source, "-s", "olddefconfig")
    run("make", "-C", source, "-s", f"-j{os.cpu_count()}", "bzImage")
    shutil.copy(source / "arch/x86/boot/bzImage", folder / "vmlinuz")
    (folder / "modules").mkdir()
    (folder / "modules/order").touch()
    for tree_of_its_own in (tree, source):
        shutil.rmtree(tree_of_its_own)


def _pip_install(target: Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--only-binary=:all:",
        f"--python-version={GUEST_PYTHON}",
        f"--target={target}",
        *python_packages(),
    )


def _unpack_modules(tree: Path, version: str, folder: Path) -> None:
    """`MODULES` and what they need, in the order to load them in."""
    folder.mkdir()
    shown = run("chroot", tree, "modprobe", "-a", "--show-depends", "-S", version, *MODULES)
    order: list[str] = []
    for line in shown.splitlines():
        kind, _, path = line.strip().partition(" ")
        name = Path(path).name.removesuffix(".xz")
        if kind == "insmod" and name not in order:
            order.append(name)
            packed = tree / path.strip().lstrip("/")
            data = subprocess.run(["xz", "-dc", packed], check=True, capture_output=True, timeout=STEP_S).stdout
            (folder / name).write_bytes(data)
    (folder / "order").write_text("".join(f"{name}\n" for name in order))


if __name__ == "__main__":
    print(parts(iommufd="--iommufd" in sys.argv[1:]))
