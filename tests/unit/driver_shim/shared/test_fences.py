"""Every fence can be called where a device can be driven, and says so where it cannot."""

import errno
import os
from typing import Any

import pytest

from driver_shim.shared import fences

SUPPORTED = ("x86_64", "aarch64")


@pytest.mark.parametrize("name", ["publish", "consume", "full", "device_write"])
def test_fences_of_this_machine_run(name: str) -> None:
    assert fences.machine_type() in SUPPORTED
    for _ in range(100):
        getattr(fences, name)()


def test_x86_64_needs_an_instruction_only_for_the_full_fence() -> None:
    chosen = fences.fences_for("x86_64")
    assert chosen.publish is chosen.consume is chosen.device_write is fences.no_instruction
    assert chosen.full is not fences.no_instruction


def test_aarch64_executes_a_barrier_for_every_fence() -> None:
    assert all(fence is not fences.no_instruction for fence in fences.fences_for("aarch64"))


@pytest.mark.parametrize("machine", ["", "riscv64", "ppc64le"])
def test_other_machines_refuse_when_a_fence_is_called_not_before(machine: str) -> None:
    for fence in fences.fences_for(machine):
        with pytest.raises(OSError, match="x86_64 and aarch64") as caught:
            fence()
        assert caught.value.errno == errno.ENOTSUP


def test_missing_library_is_an_oserror() -> None:
    with pytest.raises(OSError, match="no-such-library"):
        fences.libatomic_fence("no-such-library.so.1")


def test_library_without_the_function_is_an_oserror() -> None:
    with pytest.raises(OSError, match="atomic_thread_fence"):
        fences.libatomic_fence("libm.so.6")


def test_without_libatomic_the_system_call_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> fences.Fence:
        raise OSError("not installed")

    monkeypatch.setattr(fences, "libatomic_fence", missing)
    full: Any = fences.fences_for(os.uname().machine).full
    assert full.args[1] == fences.MEMBARRIER_GLOBAL_EXPEDITED
    assert full() == 0


def test_neither_library_nor_system_call_names_both_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str) -> fences.Fence:
        raise OSError("not here")

    monkeypatch.setattr(fences, "libatomic_fence", missing)
    monkeypatch.setattr(fences, "membarrier_fence", missing)
    with pytest.raises(OSError, match="libatomic1"):
        fences.fences_for("x86_64").full()
