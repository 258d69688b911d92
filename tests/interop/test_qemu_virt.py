"""Bare-metal programs do the same here and on QEMU's `virt` board: the same output, the same exit code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emulator.management.riscv.machine import Stop, StopReason
from tests.support.needs import needs_program
from tests.support.pipes import read_line
from tests.support.standalone_core import load_elf

SOURCES = Path(__file__).parent / "bare_metal"
COMPILER = "riscv64-unknown-elf-gcc"
QEMU = "qemu-system-riscv32"

pytestmark = needs_program(COMPILER, QEMU)

C_PROGRAMS = [
    "hello",
    "exit_code",
    "timer",
    "wfi_masked",
    "busy_wait",
    "counters",
    "software_interrupt",
    "atomics",
    "arithmetic",
    "device_accesses",
    "linked_elsewhere",
    "megabyte",
    "nested",
    "no_float",
    "plic_rules",
    "reservations",
    "reset_loop",
    "self_modifying",
    "startup",
    "time_halves",
    "uart_registers",
    "uart_wide",
    "wfi_kinds",
    "wild",
]
ASSEMBLY_PROGRAMS = ["traps", "vectored"]
ECHO_INPUT = b"bytes that are echoed."
TIMEOUT_TICKS = 100_000_000
QEMU_TIMEOUT_S = 120.0


def build(name: str, folder: Path) -> Path:
    """The ELF file of one program."""
    assembly = SOURCES / f"{name}.S"
    sources = [assembly] if assembly.exists() else [SOURCES / "start.S", SOURCES / f"{name}.c", SOURCES / "power_off.c"]
    script = SOURCES / f"{name}.ld"
    target = folder / f"{name}.elf"
    command = [COMPILER, "-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany", "-O1"]
    command += ["-ffreestanding", "-nostdlib"]
    command += ["-static", "-T", str(script if script.exists() else SOURCES / "link.ld"), "-o", str(target)]
    command += [*map(str, sources), "-lgcc"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=QEMU_TIMEOUT_S)
    return target


def run_here(elf: Path, serial_input: bytes) -> tuple[bytes, int]:
    """Output and exit code. The input is sent when the program has said that it is ready."""
    output = bytearray()
    with load_elf(elf, output.extend) as run:
        unsent = serial_input
        stop = Stop(StopReason.RUNNING)
        while stop.reason in (StopReason.RUNNING, StopReason.WAITING) and run.machine.tick < TIMEOUT_TICKS:
            if unsent and b"ready\n" in output:
                run.send(unsent)
                unsent = b""
            stop = run.step()
            if stop.reason is StopReason.WAITING:
                assert stop.until is not None or unsent or run.unsent, f"waits for ever after {bytes(output)!r}"
                if stop.until is not None:
                    run.advance_to(stop.until)
    assert stop.exit_code is not None, f"{stop} after {bytes(output)!r}"
    return bytes(output), stop.exit_code


def run_on_qemu(elf: Path, serial_input: bytes) -> tuple[bytes, int]:
    """Output and exit code on QEMU's board."""
    command = [QEMU, "-M", "virt", "-bios", "none", "-nographic", "-monitor", "none", "-kernel", str(elf)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        output = b""
        try:
            if serial_input:
                output = read_line(process.stdout, QEMU_TIMEOUT_S).encode()
                process.stdin.write(serial_input)
                process.stdin.flush()
            rest, _ = process.communicate(timeout=QEMU_TIMEOUT_S)
        finally:
            process.kill()
    return output + rest, process.returncode


@pytest.mark.parametrize("name", [*C_PROGRAMS, *ASSEMBLY_PROGRAMS])
def test_program_does_the_same_as_on_qemu(name: str, tmp_path: Path) -> None:
    elf = build(name, tmp_path)
    assert run_here(elf, b"") == run_on_qemu(elf, b"")


def test_echo_by_interrupt_does_the_same_as_on_qemu(tmp_path: Path) -> None:
    elf = build("uart_echo", tmp_path)
    here = run_here(elf, ECHO_INPUT)
    assert here == run_on_qemu(elf, ECHO_INPUT)
    assert here == (b"ready\n" + ECHO_INPUT + b"\nbye\n", 0)
