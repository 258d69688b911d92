"""A management core for tests whose firmware is a script in Python: what the host does with answers, good and bad.

The emulator's own core executes instructions; here a test says what is answered, also what no firmware ever would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from driver_shim.firmware.answers import LogRecord
from driver_shim.function.bring_up import enable_function
from driver_shim.protocol import mailbox
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.firmware_slots import SLOT_BYTES, STAGING_BYTES, Slot
from driver_shim.protocol.image import ImageError, ParsedImage, parse_image
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.mailbox import MailboxCommand, MailboxResult, MailboxState, UpdateFlag, UpdateState
from driver_shim.protocol.management_registers import HARDWARE_ID
from driver_shim.protocol.registers import CONSOLE_WINDOW_BYTES, NEVER_MEASURED, REGISTERS, CoreReset, Post
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.function.function import PciFunction
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.management.port import ManagementPort
from emulator.model.profile import load_profile

Answer = tuple[int, bytes]
"""Result and body."""
STEP_BYTES = 4096
"""What an update gets done between two questions how far it is."""


def encoded(version: ImageVersion) -> int:
    """As registers and answers have it."""
    return REGISTERS["firmware_version"].encode(**version._asdict())


class ScriptedCore(ManagementPort):
    """Two slots, a trial, an update, a log, a console."""

    def __init__(self, running: bytes) -> None:
        """Slot A holds the image `running`, confirmed, and it runs."""
        self.slots: dict[Slot, bytes] = {Slot.A: running, Slot.B: b""}
        self.post = int(Post.FIRMWARE_READY)
        self.reason = CoreReset.POWER_ON
        self.slot = Slot.A
        self.on_trial = False
        self.confirmed = Slot.A
        self.trial = Slot.NONE
        self.failed = Slot.NONE
        self.proven = {Slot.A}
        self.boots = 1
        self.security_counter = 0
        self.hardware_id = HARDWARE_ID
        self.build_id = 0x1A2B3C4D
        self.log: list[LogRecord] = []
        self.sensor_age_ms = 50
        self.temperature_millicelsius = 41500
        self.console = b""
        self.typed = b""
        self.room = 16
        self.silent = False
        """It never answers."""
        self.breaks_at_boot = False
        """The next trial image resets before it answers."""
        self.override: dict[MailboxCommand, Callable[[bytes], Answer]] = {}
        self.head: Callable[[bytes], bytes] = bytes
        """What it makes of the head that it should echo."""
        self.asked: list[MailboxCommand] = []
        self.state = MailboxState.IDLE
        self.result = 0
        self.withdrawn = 0
        self.mailbox_window = bytearray(mailbox.MAILBOX_BYTES)
        self.staging = bytearray(STAGING_BYTES)
        self.update = UpdateState.NONE
        self.update_result = 0
        self.update_image = b""
        self.update_done = 0
        self._reset_due = False

    # --- firmware ----------------------------------------------------------------------------------------------

    def image(self, slot: Slot) -> ParsedImage | None:
        """What a slot holds, if it is an image."""
        try:
            return parse_image(self.slots[slot])
        except ImageError:
            return None

    def _answer(self, command: int, body: bytes, memory: AddressSpace) -> Answer:
        try:
            known = MailboxCommand(command)
        except ValueError:
            return MailboxResult.UNKNOWN_COMMAND, b""
        self.asked.append(known)
        if known in self.override:
            return self.override[known](body)
        handler: Callable[[bytes, AddressSpace], Answer] = getattr(self, f"_{known.name.lower()}")
        return handler(body, memory)

    def _ping(self, body: bytes, memory: AddressSpace) -> Answer:
        return 0, body

    def _info(self, body: bytes, memory: AddressSpace) -> Answer:
        return 0, mailbox.INFO.build(
            protocol=mailbox.MAILBOX_VERSION,
            slot=self.slot,
            on_trial=int(self.on_trial),
            version=self.read("firmware_version"),
            build_id=self.build_id,
            boot_reason=int(self.reason),
            boots=self.boots,
            uptime_milliseconds=1500,
            security_counter=self.security_counter,
            hardware_id=self.hardware_id,
            log_first=self.log[0].sequence if self.log else 0,
            log_next=self.log[-1].sequence + 1 if self.log else 0,
        )

    def _slot_info(self, body: bytes, memory: AddressSpace) -> Answer:
        slot = Slot(mailbox.SLOT_QUERY.parse(body).slot)
        image = self.image(slot)
        facts, result = {}, MailboxResult.BAD_FORMAT
        if image is not None:
            below = (image.security_counter or 0) < self.security_counter
            result = MailboxResult.ROLLED_BACK if below else MailboxResult.OK
            facts = {
                "version": encoded(image.version),
                "image_bytes": len(image.data),
                "security_counter": image.security_counter or 0,
                "hash": image.stated_digest[:32],
            }
        return 0, mailbox.SLOT_INFO.build(
            slot=int(slot),
            valid=int(result is MailboxResult.OK),
            confirmed=int(self.confirmed == slot),
            trial=int(self.trial == slot),
            failed=int(self.failed == slot),
            proven=int(slot in self.proven),
            result=int(result),
            **facts,
        )

    def _sensors(self, body: bytes, memory: AddressSpace) -> Answer:
        return 0, mailbox.SENSORS.build(temperature_millicelsius=0xFFFF_FC18, power_milliwatts=1, voltage_millivolts=2)

    def _log_read(self, body: bytes, memory: AddressSpace) -> Answer:
        first = mailbox.LOG_QUERY.parse(body).first
        found = [record for record in self.log if record.sequence >= first][: mailbox.LOG_RECORDS_AT_ONCE]
        following = found[-1].sequence + 1 if found else first
        packed = b"".join(mailbox.LOG_RECORD.pack(*record[:-1], *record.arguments) for record in found)
        return 0, mailbox.LOG_ANSWER.build(next=following, count=len(found)) + packed

    def _stage_write(self, body: bytes, memory: AddressSpace) -> Answer:
        offset = mailbox.STAGE_WRITE.parse(body[:4]).offset
        self.staging[offset : offset + len(body) - 4] = body[4:]
        return 0, b""

    def _update_begin(self, body: bytes, memory: AddressSpace) -> Answer:
        asked = mailbox.UPDATE_BEGIN.parse(body)
        if asked.image_bytes > SLOT_BYTES:
            return MailboxResult.TOO_LARGE, b""
        if self.on_trial:
            return MailboxResult.UNCONFIRMED, b""
        if asked.flags & UpdateFlag.STAGED:
            data = bytes(self.staging[: asked.image_bytes])
        else:
            try:
                data = bytes(memory.read(asked.address, asked.image_bytes))
            except DmaFault:
                return MailboxResult.DMA_FAULT, b""
        self.update, self.update_image, self.update_done = UpdateState.VERIFYING, data, 0
        self.update_result = 0
        return 0, b""

    @property
    def update_slot(self) -> Slot:
        """Where updates go."""
        return self.slot.other

    def _update_status(self, body: bytes, memory: AddressSpace) -> Answer:
        answer = mailbox.UPDATE_STATUS.build(
            state=int(self.update),
            result=self.update_result,
            slot=int(self.update_slot),
            done_bytes=self.update_done,
            total_bytes=len(self.update_image),
        )
        self._update_step()
        return 0, answer

    def _update_step(self) -> None:
        if self.update is UpdateState.VERIFYING:
            try:
                parse_image(self.update_image)
                self.update = UpdateState.WRITING
            except ImageError:
                self.update, self.update_result = UpdateState.FAILED, MailboxResult.BAD_FORMAT
        elif self.update is UpdateState.WRITING:
            self.proven.discard(self.update_slot)
            self.update_done = min(self.update_done + STEP_BYTES, len(self.update_image))
            self.slots[self.update_slot] = self.update_image[: self.update_done]
            if self.update_done == len(self.update_image):
                self.update, self.update_done = UpdateState.READING_BACK, 0
        elif self.update is UpdateState.READING_BACK:
            self.update_done = min(self.update_done + STEP_BYTES, len(self.update_image))
            if self.update_done == len(self.update_image):
                self.update, self.trial = UpdateState.DONE, self.update_slot

    def _update_abort(self, body: bytes, memory: AddressSpace) -> Answer:
        if self.update in (UpdateState.VERIFYING, UpdateState.WRITING, UpdateState.READING_BACK):
            self.update, self.update_result = UpdateState.FAILED, MailboxResult.ABORTED
        return 0, b""

    def _confirm(self, body: bytes, memory: AddressSpace) -> Answer:
        if not self.on_trial:
            return MailboxResult.NOT_ON_TRIAL, b""
        self.confirmed, self.trial, self.on_trial = self.slot, Slot.NONE, False
        self.proven.add(self.slot)
        return 0, b""

    def _rollback(self, body: bytes, memory: AddressSpace) -> Answer:
        if self.trial == self.slot.other:
            self.trial = Slot.NONE
            return 0, b""
        if self.image(self.slot.other) is None:
            return MailboxResult.NO_OTHER_IMAGE, b""
        if self.slot.other == self.failed or self.slot.other not in self.proven:
            return MailboxResult.UNTRIED, b""
        self.confirmed, self.trial = self.slot.other, Slot.NONE
        return 0, b""

    def _reset(self, body: bytes, memory: AddressSpace) -> Answer:
        self._reset_due = True
        return 0, b""

    def boot(self, reason: CoreReset = CoreReset.FIRMWARE) -> None:
        """The core was reset: choose an image as the boot ROM does."""
        self.boots += 1
        self.reason = reason
        if self.on_trial:
            self.failed, self.trial, self.on_trial = self.slot, Slot.NONE, False
            self.slot, self.reason = self.confirmed, CoreReset.FALL_BACK
        elif self.trial is not Slot.NONE:
            self.slot, self.on_trial = self.trial, True
            if self.breaks_at_boot:
                self.boot(CoreReset.WATCHDOG)
        else:
            self.slot = self.confirmed

    # --- registers ---------------------------------------------------------------------------------------------

    def read(self, register: str) -> int:
        """See ManagementPort."""
        name, _, index = register.rpartition("_")
        if name == "mailbox_data":
            at = 8 * int(index)
            return int.from_bytes(self.mailbox_window[at : at + 8], "little")
        return self._readings()[register]

    def _readings(self) -> dict[str, int]:
        image = self.image(self.slot)
        explained = (Post.ABSENT, Post.HELD, Post.LOST, Post.POWERED_OFF)
        state = MailboxState.ABSENT if self.post in explained else self.state
        return {
            "boot_progress": REGISTERS["boot_progress"].encode(
                post_code=self.post, boot_reason=int(self.reason), slot=int(self.slot), trial=int(self.on_trial)
            ),
            "firmware_version": encoded(image.version) if image else 0,
            "firmware_build_id": self.build_id,
            "sensor_temperature": self.temperature_millicelsius & 0xFFFF_FFFF,
            "sensor_power": 12_250,
            "sensor_voltage": 800,
            "sensor_age": NEVER_MEASURED if self.post == Post.ABSENT else self.sensor_age_ms,
            "throttle": 1,
            "console_written": len(self.console),
            "console_room": self.room,
            "mailbox_status": REGISTERS["mailbox_status"].encode(state=int(state), result=self.result),
        }

    def write(self, register: str, value: int) -> bool:
        """See ManagementPort; `core_control` does nothing here."""
        name, _, index = register.rpartition("_")
        if name == "mailbox_data":
            at = 8 * int(index)
            self.mailbox_window[at : at + 8] = value.to_bytes(8, "little")
        elif register == "console_input" and self.room:
            self.typed += bytes([value])
            self.room -= 1
        elif register == "mailbox_control":
            asked = REGISTERS["mailbox_control"].decode(value)
            if asked["withdraw"]:
                self.withdraw()
            return not asked["ring"] or self.ring()
        return True

    def ring(self) -> bool:
        """A request is handed over; False while there is one."""
        if self.state is MailboxState.BUSY:
            return False
        self.state = MailboxState.BUSY
        return True

    def withdraw(self) -> None:
        """The request is taken back."""
        self.withdrawn += self.state is MailboxState.BUSY
        self.state = MailboxState.IDLE

    def window(self, offset: int, size: int) -> bytes:
        """See ManagementPort."""
        window = bytearray(CONSOLE_WINDOW_BYTES)
        start = max(0, len(self.console) - CONSOLE_WINDOW_BYTES)
        for at in range(start, len(self.console)):
            window[at % CONSOLE_WINDOW_BYTES] = self.console[at]
        return bytes(window[offset : offset + size])

    def step(self, memory: AddressSpace, *, bus_master: bool, busy_ticks: int) -> bool:
        """Answer what is asked."""
        if self.state is not MailboxState.BUSY or self.silent:
            return False
        command, length, sequence = mailbox.REQUEST.unpack_from(self.mailbox_window)
        begin = mailbox.REQUEST.size
        self.result, body = self._answer(command, bytes(self.mailbox_window[begin : begin + length]), memory)
        head = mailbox.REQUEST.pack(command, len(body), sequence)
        answer = self.head(head) + body
        self.mailbox_window[: len(answer)] = answer[: mailbox.MAILBOX_BYTES]
        self.state = MailboxState.DONE
        if self._reset_due:
            self._reset_due = False
            self.boot()
        return True

    def wake_fds(self) -> list[int]:
        """See ManagementPort."""
        return []

    def device_reset(self) -> None:
        """See ManagementPort."""
        self.withdraw()

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def scripted(core: ScriptedCore, *, has_dma: bool = True) -> Iterator[InProcessTransport]:
    """A transport to a function with this core."""
    chip = Chip(
        load_profile("generic"),
        lambda memory: InlineEngines(memory.view, executor, "numpy"),
        management=core,
    )
    function = PciFunction(chip)
    transport = InProcessTransport(function, ResetCause.DEVICE_RESET)
    transport.has_dma = has_dma
    enable_function(transport)
    try:
        yield transport
    finally:
        transport.close()
        function.close()
