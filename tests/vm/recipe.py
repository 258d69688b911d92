"""Makes, once per recipe, what a guest needs: QEMU, a root image with Python and its packages, and kernels.

Everything comes from Debian's and PyPI's packages and lies in a cache folder, each part under the hash of its recipe.
Needs root, mmdebstrap, mke2fs and pip; `kernel_with_iommufd` also a compiler (see `BUILD_PACKAGES`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

RECIPE = 1
"""Grows when parts are made in another way from the same packages: those in the cache are then made anew."""
SUITE = "trixie"
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
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))


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
    """`$NPU_CACHE_DIR/vm`, else in the user's cache folder."""
    named = os.environ.get("NPU_CACHE_DIR")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npu-sdk"
    return base / "vm"


def parts(*, iommufd: bool = False) -> Parts:
    """A guest of this recipe, from the cache or made now. Raises CalledProcessError, OSError, RuntimeError."""
    host = _cached("host", _key(*HOST_PACKAGES), _make_host)
    packages = python_packages()
    guest = _cached("guest", _key(*GUEST_PACKAGES, GUEST_PYTHON, IMAGE_SIZE, *MODULES, *packages), _make_guest)
    kernel = guest
    if iommufd:
        config = (HERE / "kernel-iommufd.config").read_text()
        kernel = _cached("kernel", _key(KERNEL_SOURCE, config), _make_kernel)
    return Parts(host, guest / "root.img", guest / "busybox", kernel / "vmlinuz", kernel / "modules")


def python_packages() -> list[str]:
    """Requirements of what runs in the guest: of the SDK, the demo, USB, signatures and the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [wanted for wanted in extras["dev"] if wanted.startswith(TEST_TOOLS)]
    signatures = [wanted for wanted in extras["firmware"] if wanted.startswith(SIGNATURE_TOOLS)]
    return [*project["dependencies"], *extras["demo"], *extras["usb"], *signatures, *tools]


def _key(*parts: str) -> str:
    """Names a part by what it is made of."""
    return hashlib.sha256("\0".join((str(RECIPE), SUITE, *parts)).encode()).hexdigest()[:12]


def _cached(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of a part; `make` fills it, beside its place until it is whole."""
    folder = cache_folder() / f"{name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / f"{name}.lock"):
        if not folder.is_dir():
            for older in folder.parent.glob(f"{name}-*"):
                shutil.rmtree(older)
            _require_tools()
            print(f"making {name}: {folder}", file=sys.stderr, flush=True)
            growing = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
            growing.chmod(0o755)
            try:
                make(growing)
            except BaseException:
                shutil.rmtree(growing, ignore_errors=True)
                raise
            growing.rename(folder)
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_host(folder: Path) -> None:
    _bootstrap(folder, HOST_PACKAGES, f"{SUITE}-backports")


def _make_guest(folder: Path) -> None:
    tree = folder / "tree"
    _bootstrap(tree, GUEST_PACKAGES, SUITE)
    _pip_install(tree / "opt/python")
    _run("chroot", tree, "python3", "-m", "compileall", "-q", "/opt/python", "/usr/lib/python3")
    for mount_point in ("project", "exchange"):
        (tree / mount_point).mkdir()
    version = next((tree / "lib/modules").iterdir()).name
    shutil.copy(tree / "boot" / f"vmlinuz-{version}", folder / "vmlinuz")
    shutil.copy(tree / "usr/bin/busybox", folder / "busybox")
    _unpack_modules(tree, version, folder / "modules")
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, folder / "root.img", IMAGE_SIZE)
    shutil.rmtree(tree)


def _make_kernel(folder: Path) -> None:
    """A kernel that has iommufd, which Debian's have not; everything is built in."""
    if not all(shutil.which(tool) for tool in ("make", "gcc", "flex", "bison", "bc")):
        raise RuntimeError(f"building a kernel takes: apt-get install {' '.join(BUILD_PACKAGES)}")
    tree = folder / "tree"
    _bootstrap(tree, (KERNEL_SOURCE,), f"{SUITE}-backports")
    source = folder / KERNEL_SOURCE
    _run("tar", "-C", folder, "-xf", tree / f"usr/src/{KERNEL_SOURCE}.tar.xz")
    _run("make", "-C", source, "-s", "tinyconfig")
    with (source / ".config").open("a") as config:
        config.write((HERE / "kernel-iommufd.config").read_text())
    _run("make", "-C", source, "-s", "olddefconfig")
    _run("make", "-C", source, "-s", f"-j{os.cpu_count()}", "bzImage")
    shutil.copy(source / "arch/x86/boot/bzImage", folder / "vmlinuz")
    (folder / "modules").mkdir()
    (folder / "modules/order").touch()
    for tree_of_its_own in (tree, source):
        shutil.rmtree(tree_of_its_own)


def _require_tools() -> None:
    """Raise RuntimeError unless what makes a guest is there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in ("mmdebstrap", "mke2fs", "xz", "chroot") if not shutil.which(tool, path=path)]
    if missing or os.getuid():
        raise RuntimeError(
            f"making a guest takes root, and {', '.join(missing) or 'nothing else that is missing'}:"
            " apt-get install mmdebstrap e2fsprogs xz-utils debian-archive-keyring"
        )


def _bootstrap(target: Path, packages: tuple[str, ...], release: str) -> None:
    mirror = _mirror()
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--aptopt=APT::Default-Release "{release}"',
        f"--keyring={KEYRING}",
        SUITE,
        target,
        f"deb {mirror} {SUITE} main",
        f"deb {mirror} {SUITE}-backports main",
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
        "--no-compile",
        "--only-binary=:all:",
        f"--python-version={GUEST_PYTHON}",
        f"--target={target}",
        *python_packages(),
    )


def _unpack_modules(tree: Path, version: str, folder: Path) -> None:
    """`MODULES` and what they need, in the order to load them in."""
    folder.mkdir()
    shown = _run("chroot", tree, "modprobe", "-a", "--show-depends", "-S", version, *MODULES)
    order: list[str] = []
    for line in shown.splitlines():
        kind, _, path = line.strip().partition(" ")
        name = Path(path).name.removesuffix(".xz")
        if kind == "insmod" and name not in order:
            order.append(name)
            packed = tree / path.strip().lstrip("/")
            data = subprocess.run(["xz", "-dc", packed], check=True, capture_output=True).stdout
            (folder / name).write_bytes(data)
    (folder / "order").write_text("".join(f"{name}\n" for name in order))


def _run(*command: str | Path) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    ran = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
    )
    return ran.stdout


if __name__ == "__main__":
    print(parts(iommufd="--iommufd" in sys.argv[1:]))
