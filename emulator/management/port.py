"""The management core as the PCI function sees it, and the core that is not there.

All of it is silicon: registers, wires, memory. What only firmware can answer travels through them.
"""

from __future__ import annotations

import abc
import socket

from driver_shim.protocol.mailbox import MailboxState
from driver_shim.protocol.registers import NEVER_MEASURED, REGISTERS, Post
from emulator.host_memory.address_space import AddressSpace

_ABSENT = {
    "boot_progress": REGISTERS["boot_progress"].encode(post_code=Post.ABSENT),
    "mailbox_status": REGISTERS["mailbox_status"].encode(state=MailboxState.ABSENT),
    "sensor_age": NEVER_MEASURED,
}
"""Registers that are not zero where there is no core."""


class ManagementPort(abc.ABC):
    """A core behind `CORE_REGISTERS` of BAR0 and the console window."""

    recovery: socket.socket | None = None
    """The USB controller's wire to the boot ROM (`recovery_channel.py`); None while there is no core."""

    @abc.abstractmethod
    def read(self, register: str) -> int:
        """What a register shows."""

    @abc.abstractmethod
    def write(self, register: str, value: int) -> bool:
        """The host wrote this to a register; False if it came at the wrong time: a ring of a mailbox that is busy."""

    @abc.abstractmethod
    def window(self, offset: int, size: int) -> bytes:
        """Bytes of the console window."""

    @abc.abstractmethod
    def step(self, memory: AddressSpace, *, bus_master: bool, busy_ticks: int) -> bool:
        """Carry out what the core asked of the bus; True if anything was done."""

    @abc.abstractmethod
    def wake_fds(self) -> list[int]:
        """Descriptors whose readability means that `step` has work."""

    @abc.abstractmethod
    def device_reset(self) -> None:
        """The function is being reset: its request is withdrawn, a core that broke down starts anew, a healthy one
        does not notice.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Power off; idempotent."""


class AbsentCore(ManagementPort):
    """No management core: boot progress and mailbox say so, nothing was ever measured, what is written is lost."""

    def read(self, register: str) -> int:
        """See ManagementPort."""
        return _ABSENT.get(register, 0)

    def write(self, register: str, value: int) -> bool:
        """Nobody takes it."""
        return True

    def window(self, offset: int, size: int) -> bytes:
        """See ManagementPort."""
        return bytes(size)

    def step(self, memory: AddressSpace, *, bus_master: bool, busy_ticks: int) -> bool:
        """There is never work."""
        return False

    def wake_fds(self) -> list[int]:
        """See ManagementPort."""
        return []

    def device_reset(self) -> None:
        """There is nothing to start."""

    def close(self) -> None:
        """There is nothing to end."""
