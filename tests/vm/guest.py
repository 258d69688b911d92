"""A booted guest: an unmodified QEMU with cards from emulator processes, a shell inside it, and QEMU's monitor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.vm.recipe import HERE, ROOT, Parts

MEMORY = "3G"
FIRST_SLOT = 0x10
"""Where the root ports begin on the root bus; QEMU puts its own devices below."""
PORTS = 4
"""Root ports, so cards that the guest can have at a time."""
BOOT_S = 120.0
STOP_S = 10.0
LOOK_S = 60.0
"""To list a folder in the guest, on a loaded host."""
POLL_S = 0.05
HOST = "10.0.2.2"
"""Where the guest reaches what listens on this machine's loopback; `GUEST` is its own address there."""
GUEST = "10.0.2.15/24"
HUGE_PAGES = 384
"""Without them each 4 KiB of DMA memory costs a message to the emulator, and another to take it back."""
_QUICKLY = "mitigations=off init_on_alloc=0 audit=0 apparmor=0"
"""Nobody attacks this guest, and what protects it costs an emulated processor dearly."""
KERNEL_ARGUMENTS = f"console=ttyS0 intel_iommu=on quiet loglevel=4 panic=-1 hugepages={HUGE_PAGES} {_QUICKLY}"
_UNMAPPED_NOTHING = "vfio_container_dma_unmap"
"""QEMU logs a line each time it takes back what it never mapped."""


class Ran(NamedTuple):
    """How a command in the guest ended."""

    status: int
    output: str


class GuestError(Exception):
    """The guest did not do what it must; the text holds what it printed."""


class Card:
    """One emulator process on a socket, and the root port it is plugged into."""

    def __init__(self, folder: Path, port: int, profile: str = "generic") -> None:
        self.name = f"card{port}"
        self.port = port
        self.socket = folder / f"{self.name}.sock"
        self._log = (folder / f"{self.name}.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "emulator", "--socket", self.socket, "--profile", profile),
                *("--log-level", "INFO"),
                *("--kernels", "numpy"),  # what the card computes is compared with onnxruntime's answers
            ],
            cwd=ROOT,
            env={**os.environ, "NPU_RUNTIME_DIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        _wait_for(self.socket.exists, BOOT_S, "the emulator's socket", self.process)

    def device(self) -> dict[str, Any]:
        """QEMU's description of it."""
        where = {"type": "unix", "path": str(self.socket)}
        return {"driver": "vfio-user-pci", "id": self.name, "bus": f"port{self.port}", "socket": where}

    def counts(self) -> tuple[int, int]:
        """(open descriptors, mappings) of the emulator's process."""
        base = Path(f"/proc/{self.process.pid}")
        return len(list((base / "fd").iterdir())), len((base / "maps").read_text().splitlines())

    def kill(self) -> None:
        """End the emulator at once."""
        self.process.kill()
        self.process.wait(STOP_S)

    def close(self) -> None:
        """End the emulator and its log; idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()


class Monitor:
    """QEMU's monitor (QMP)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOOT_S)
        self._socket.connect(os.fspath(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()  # the greeting
        self.events: list[dict[str, Any]] = []
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Carry out a command; its result. Raises GuestError with what QEMU answered."""
        self._lines.write(json.dumps({"execute": command, "arguments": dict(arguments or {})}) + "\n")
        self._lines.flush()
        while True:
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
            elif "return" in answer:
                return answer["return"]
            else:
                raise GuestError(f"{command}: {answer}")

    def wait_for_event(self, name: str, patience_s: float) -> dict[str, Any]:
        """The next event of this name, or one that came before. Raises GuestError when none comes."""
        deadline = time.monotonic() + patience_s
        while True:
            for at, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(at)
            self._socket.settimeout(max(POLL_S, deadline - time.monotonic()))
            try:
                self.events.append(self._next())
            except TimeoutError:
                raise GuestError(f"no event {name} within {patience_s:g} s") from None
            finally:
                self._socket.settimeout(BOOT_S)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def _next(self) -> Any:
        line = self._lines.readline()
        if not line:
            raise GuestError("QEMU hung up")
        return json.loads(line)


class Guest:
    """Boots at once. `run` carries out shell commands in it; `close` ends everything that belongs to it."""

    def __init__(self, parts: Parts, *, cards: int = 1, arguments: str = "") -> None:
        self._parts = parts
        self.folder = Path(tempfile.mkdtemp(prefix="npu-vm-"))
        self.exchange = self.folder / "exchange"
        self.exchange.mkdir()
        self.cards: dict[int, Card] = {}
        self._jobs = 0
        self._qemu: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        try:
            for port in range(cards):
                self.cards[port] = Card(self.folder, port)
            began = time.monotonic()
            self._start(arguments)
            self._wait((self.exchange / "ready").exists, BOOT_S, "the guest to be ready for jobs")
            self.boot_seconds = time.monotonic() - began
        except BaseException:
            self.close()
            raise

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor."""
        if self._monitor is None:
            self._monitor = Monitor(self.folder / "monitor")
        return self._monitor

    @property
    def running(self) -> bool:
        """Whether QEMU has not ended."""
        return self._qemu is not None and self._qemu.poll() is None

    def start(self, command: str) -> int:
        """Begin a shell command in the guest; its number for `result`."""
        self._jobs += 1
        growing = self.exchange / f"growing-{self._jobs}"
        growing.write_text(command + "\n")
        growing.rename(self.exchange / f"job-{self._jobs:06}")
        return self._jobs

    def result(self, number: int, timeout: float) -> Ran:
        """Wait for a command. Raises GuestError when it takes longer than `timeout` seconds, or QEMU ends."""
        status = self.exchange / f"status-{number:06}"
        self._wait(status.exists, timeout, f"command {number}: {self._running(number)}", number)
        return Ran(int(status.read_text()), self.output(number))

    def output(self, number: int) -> str:
        """What a command has printed so far."""
        path = self.exchange / f"output-{number:06}"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def wait_for_output(self, number: int, word: str, patience_s: float) -> None:
        """Wait until a command has printed `word`. Raises GuestError when it does not, or ends before."""

        def printed() -> bool:
            if not word_is_there() and (self.exchange / f"status-{number:06}").exists() and not word_is_there():
                raise GuestError(f"command {number} ended without {word!r}: {self.output(number)}")
            return word_is_there()

        def word_is_there() -> bool:
            return word in self.output(number)

        self._wait(printed, patience_s, f"{word!r} from command {number}", number)

    def run(self, command: str, timeout: float) -> Ran:
        """Run a shell command in the guest as root."""
        return self.result(self.start(command), timeout)

    def check(self, command: str, timeout: float) -> str:
        """Run a shell command that must succeed; what it printed. Raises GuestError."""
        ran = self.run(command, timeout)
        if ran.status:
            raise GuestError(f"status {ran.status} of {command}\n{ran.output}")
        return ran.output

    def bus_address(self, card: Card) -> str:
        """Where the guest sees a card: the function behind its root port."""
        where = self.check(f"ls -d /sys/bus/pci/devices/0000:00:{FIRST_SLOT + card.port:02x}.0/0000:*:00.0", LOOK_S)
        return where.strip().rpartition("/")[2]

    def kill(self) -> None:
        """End QEMU at once: whatever waits for the guest fails then."""
        if self._qemu is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._qemu.pid, signal.SIGKILL)

    def close(self) -> None:
        """End QEMU and the emulators and remove the folder; idempotent."""
        if self._monitor is not None:
            with contextlib.suppress(OSError):
                self._monitor.close()
            self._monitor = None
        if self._qemu is not None:
            if self.exchange.exists():
                (self.exchange / "power-off").touch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._qemu.wait(STOP_S)
            self.kill()
            self._qemu.wait(STOP_S)
        for card in self.cards.values():
            card.close()
        kept = os.environ.get("NPU_VM_KEEP")
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def console(self) -> str:
        """What the kernel printed on its console, and QEMU on stderr."""
        texts = [self.folder / name for name in ("console", "qemu.log")]
        lines = [line for path in texts if path.exists() for line in path.read_text("utf-8", "replace").splitlines()]
        return "\n".join(line for line in lines if _UNMAPPED_NOTHING not in line)

    # --- helpers -----------------------------------------------------------------------------------------------

    def _start(self, arguments: str) -> None:
        with (self.folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                self._command(self._initramfs(), arguments),
                env={**os.environ, "QEMU_MODULE_DIR": str(_libraries(self._parts.host) / "qemu")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self, initramfs: Path, arguments: str) -> list[str]:
        host, parts = self._parts.host, self._parts
        shares = {"project": (ROOT, ",readonly=on"), "exchange": (self.exchange, "")}
        command = [
            *_in_tree(host, "usr/bin/qemu-system-x86_64"),
            *("-L", f"{host}/usr/share/qemu", "-L", f"{host}/usr/share/seabios"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35,kernel-irqchip=split,memory-backend=ram", "-accel", "tcg,thread=multi"),
            *("-cpu", "max,la57=off", "-smp", "2", "-m", MEMORY),
            *("-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on"),
            *("-device", "intel-iommu,intremap=on,caching-mode=on"),
            *("-kernel", str(parts.kernel), "-initrd", str(initramfs)),
            *("-append", f"{KERNEL_ARGUMENTS} {arguments}"),
            *("-drive", f"file={parts.root},format=raw,if=virtio,snapshot=on"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
            *("-serial", f"file:{self.folder}/console"),
            *("-qmp", f"unix:{self.folder}/monitor,server=on,wait=off"),
        ]
        for tag, (path, options) in shares.items():
            command += ["-fsdev", f"local,id={tag},path={path},security_model=none{options}"]
            command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        for port in range(PORTS):
            where = f"id=port{port},chassis={port + 1},slot={port + 1},addr={FIRST_SLOT + port:#x}"
            command += ["-device", f"pcie-root-port,{where}"]
        for card in self.cards.values():
            command += ["-device", json.dumps(card.device())]
        return command

    def _initramfs(self) -> Path:
        """First file system: busybox, the modules that find the second, and what runs jobs there."""
        stage = self.folder / "initramfs.d"
        (stage / "bin").mkdir(parents=True)
        shutil.copy(self._parts.busybox, stage / "bin/busybox")
        shutil.copytree(self._parts.modules, stage / "modules")
        for name, source in (("init", "init.sh"), ("jobs", "jobs.sh")):
            shutil.copy(HERE / source, stage / name)
            (stage / name).chmod(0o755)
        names = "".join(f"{path.relative_to(stage)}\n" for path in sorted(stage.rglob("*")))
        packed = self.folder / "initramfs"
        with packed.open("wb") as file:
            command = [*_in_tree(self._parts.host, "usr/bin/cpio"), "--quiet", "-o", "-H", "newc"]
            subprocess.run(command, cwd=stage, input=names.encode(), stdout=file, check=True, timeout=BOOT_S)
        return packed

    def _running(self, number: int) -> str:
        for prefix in ("running", "job"):
            path = self.exchange / f"{prefix}-{number:06}"
            if path.exists():
                return path.read_text().strip()
        return "(never begun)"

    def _wait(self, condition: Any, patience_s: float, what: str, number: int | None = None) -> None:
        try:
            _wait_for(condition, patience_s, what, self._qemu)
        except GuestError as error:
            printed = self.output(number) if number else ""
            raise GuestError(f"{error}\n{printed}\n--- console\n{self.console()[-4000:]}") from None


def _wait_for(condition: Any, patience_s: float, what: str, process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if process is not None and process.poll() is not None:
            raise GuestError(f"{what}: its process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise GuestError(f"{what}: not within {patience_s:g} s")
        time.sleep(POLL_S)


def _libraries(tree: Path) -> Path:
    return tree / "usr/lib/x86_64-linux-gnu"


def _in_tree(tree: Path, program: str) -> list[str]:
    """The beginning of a command that runs a program of a bootstrapped tree by its own dynamic linker."""
    return [f"{tree}/lib64/ld-linux-x86-64.so.2", "--library-path", str(_libraries(tree)), f"{tree}/{program}"]
