"""A debug port on a chip that is only memory: registers, a core that goes where it is told, slots in a dictionary."""

from __future__ import annotations

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxResult
from driver_shim.protocol.registers import BAR0_BYTES, REGISTERS, Post
from driver_shim.protocol.usb import Direction, Recipient, RequestType, Setup, StandardRequest
from emulator.usb.device import DebugPort
from emulator.usb.recovery_port import Outcome
from emulator.usb.transfer import Answer, Ending

SERIAL = "EMU0001"
MOST_ATTEMPTS = 20
GOOD = b"good image"
"""What begins with it is installed, all else refused."""
CLASS_OUT = Direction.OUT | RequestType.CLASS | Recipient.INTERFACE
CLASS_IN = Direction.IN | RequestType.CLASS | Recipient.INTERFACE
VENDOR_OUT = Direction.OUT | RequestType.VENDOR | Recipient.INTERFACE
VENDOR_IN = Direction.IN | RequestType.VENDOR | Recipient.INTERFACE


class MemoryChip:
    """BAR0 as plain memory; writes to core_control, in its own width, take the core into recovery or boot it."""

    def __init__(self, post: Post) -> None:
        self.memory = bytearray(BAR0_BYTES)
        self.boots = True
        """Whether a reset finds an image."""
        self.written: list[tuple[int, bytes]] = []
        self.show(post)

    def show(self, post: int) -> None:
        register = REGISTERS["boot_progress"]
        value = register.encode(post_code=post).to_bytes(register.size, "little")
        self.memory[register.offset : register.offset + register.size] = value

    def bar0_read(self, offset: int, size: int) -> bytes:
        return bytes(self.memory[offset : offset + size])

    def bar0_write(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))
        control = REGISTERS["core_control"]
        if offset != control.offset:
            self.memory[offset : offset + len(data)] = data
            return
        if len(data) != control.size:
            return
        asked = control.decode(int.from_bytes(data, "little"))
        if asked["recovery"]:
            self.show(Post.RECOVERY)
        elif asked["reset"]:
            self.show(Post.FIRMWARE_READY if self.boots else Post.RECOVERY)


class MemoryRecovery:
    """Slots in a dictionary. With `busy`, what is begun goes on until that many polls have passed."""

    def __init__(self, busy: int = 0) -> None:
        self.slots: dict[Slot, bytes] = {}
        self.staged = bytearray()
        self._busy = busy
        self._left = 0
        self._outcome = Outcome(MailboxResult.OK)

    def stage(self, offset: int, data: bytes) -> None:
        self._begin()
        del self.staged[offset:]
        self.staged += data

    def verify(self, length: int) -> None:
        self._begin()
        if len(self.staged) != length:
            self._outcome = Outcome(MailboxResult.NOT_STAGED, "bytes are missing")
        elif not self.staged.startswith(GOOD):
            self._outcome = Outcome(MailboxResult.BAD_SIGNATURE, "the signature is wrong")

    def install(self, slot: Slot, length: int) -> None:
        self.verify(length)
        if self._outcome.result is MailboxResult.OK:
            self.slots[slot] = bytes(self.staged)

    def finish(self) -> None:
        """What goes on is done, and nothing takes time any more."""
        self._busy = self._left = 0

    def poll(self) -> Outcome | None:
        if self._left:
            self._left -= 1
            return None
        return self._outcome

    def slot_length(self, slot: Slot) -> int | None:
        return len(self.slots.get(slot, b""))

    def read_slot(self, slot: Slot, offset: int, length: int) -> bytes | None:
        return self.slots.get(slot, b"")[offset : offset + length]

    def _begin(self) -> None:
        assert self.poll() is not None or not self._busy, "begun while something goes on"
        self._left = self._busy
        self._outcome = Outcome(MailboxResult.OK)


class Bench:
    """The port, configured, with a clock that the test sets."""

    def __init__(self, post: Post = Post.FIRMWARE_READY, busy: int = 0) -> None:
        self.now = 0.0
        self.owned = False
        self.chip = MemoryChip(post)
        self.recovery = MemoryRecovery(busy)
        self.port = DebugPort(SERIAL, self.chip, self.recovery, lambda: self.owned, lambda: self.now)
        self.configure()

    def configure(self) -> None:
        assert self.ask(0x00, StandardRequest.SET_CONFIGURATION, 1) == b""

    def patiently(self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes | int = b"") -> Answer:
        """As `ask`, again and again while the port is not ready."""
        for _ in range(MOST_ATTEMPTS):
            answer = self.ask(kind, request, value, index, data)
            if answer is not Ending.LATER:
                return answer
        raise AssertionError("never ready")

    def ask(self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes | int = b"") -> Answer:
        """One control transfer: `data` to send, or how much is asked for."""
        length = data if isinstance(data, int) else len(data)
        setup = Setup(kind, request, value, index, length)
        return self.port.answer(setup, b"" if isinstance(data, int) else data)
