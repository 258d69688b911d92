"""What the PCI function needs of the management core, and the core that is not there.

Everything here is silicon: registers, wires, memory. What only firmware can answer is not in it.
"""

from __future__ import annotations

import abc
import socket

from driver_shim.protocol.mailbox import MailboxState
from driver_shim.protocol.registers import NEVER_MEASURED, REGISTERS, Post
from emulator.host_memory.address_space import AddressSpace


class ManagementPort(abc.ABC):
    """A management core as the function's registers show it."""

    recovery: socket.socket | None = None
    """The USB controller's wire to the boot ROM (`recovery_channel.py`); None while there is no core."""

    @abc.abstractmethod
    def boot_progress(self) -> int:
        """The register of that name."""

    @abc.abstractmethod
    def firmware_version(self) -> int:
        """The register of that name: 0 while no image runs."""

    @abc.abstractmethod
    def firmware_build_id(self) -> int:
        """The register of that name."""

    @abc.abstractmethod
    def control(self, value: int) -> None:
        """A write to core_control."""

    @abc.abstractmethod
    def reading(self, name: str) -> int:
        """A sensor register: "temperature", "power", "voltage", "age" or "throttle"."""

    @abc.abstractmethod
    def console_written(self) -> int:
        """The register of that name."""

    @abc.abstractmethod
    def console_window(self, offset: int, size: int) -> bytes:
        """Bytes of the console window."""

    @abc.abstractmethod
    def console_input(self, byte: int) -> None:
        """A write to that register."""

    @abc.abstractmethod
    def console_room(self) -> int:
        """The register of that name."""

    @abc.abstractmethod
    def mailbox_ring(self) -> bool:
        """Hand the request over; False when one is on its way already."""

    @abc.abstractmethod
    def mailbox_withdraw(self) -> None:
        """Forget the request that is on its way."""

    @abc.abstractmethod
    def mailbox_status(self) -> int:
        """The register of that name."""

    @abc.abstractmethod
    def mailbox_read(self, index: int) -> int:
        """A mailbox_data register."""

    @abc.abstractmethod
    def mailbox_write(self, index: int, value: int) -> None:
        """A write to a mailbox_data register."""

    @abc.abstractmethod
    def step(self, memory: AddressSpace, *, bus_master: bool, busy_ticks: int) -> bool:
        """Carry out what the core asked of the bus; True if anything was done."""

    @abc.abstractmethod
    def wake_fds(self) -> list[int]:
        """Descriptors whose readability means that `step` has work."""

    @abc.abstractmethod
    def device_reset(self) -> None:
        """The function is being reset: a core that broke down starts anew, a healthy one does not notice."""

    @abc.abstractmethod
    def close(self) -> None:
        """Power off; idempotent."""


class AbsentCore(ManagementPort):
    """No management core: boot progress reads absent, the mailbox says so, all else reads as never measured."""

    def boot_progress(self) -> int:
        """See ManagementPort."""
        return REGISTERS["boot_progress"].encode(post_code=Post.ABSENT)

    def firmware_version(self) -> int:
        """See ManagementPort."""
        return 0

    def firmware_build_id(self) -> int:
        """See ManagementPort."""
        return 0

    def control(self, value: int) -> None:
        """There is nothing to control."""

    def reading(self, name: str) -> int:
        """See ManagementPort."""
        return NEVER_MEASURED if name == "age" else 0

    def console_written(self) -> int:
        """See ManagementPort."""
        return 0

    def console_window(self, offset: int, size: int) -> bytes:
        """See ManagementPort."""
        return bytes(size)

    def console_input(self, byte: int) -> None:
        """Lost."""

    def console_room(self) -> int:
        """See ManagementPort."""
        return 0

    def mailbox_ring(self) -> bool:
        """Nobody takes it, and mailbox_status says so."""
        return True

    def mailbox_withdraw(self) -> None:
        """There is nothing to withdraw."""

    def mailbox_status(self) -> int:
        """See ManagementPort."""
        return REGISTERS["mailbox_status"].encode(state=MailboxState.ABSENT)

    def mailbox_read(self, index: int) -> int:
        """See ManagementPort."""
        return 0

    def mailbox_write(self, index: int, value: int) -> None:
        """Lost."""

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
