"""The core's end of the mailbox."""

from __future__ import annotations

from driver_shim.protocol.mailbox import MAILBOX_BYTES, MailboxResult
from driver_shim.protocol.management_registers import MAILBOX
from driver_shim.shared import fences
from emulator.management.link import Link
from emulator.management.npu.peripherals.register_block import WORD_BYTES, RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort

_WORDS = MAILBOX_BYTES // WORD_BYTES


class Mailbox(RegisterPeripheral):
    """Registers of `management_registers.MAILBOX`.

    A request is copied out of the shared memory when it is noticed: the host may already be writing the next one.
    """

    def __init__(self, machine: MachinePort, interrupt: int, link: Link) -> None:
        super().__init__(MAILBOX, reads={"request": lambda: int(self._pending)}, writes={"answer": self._answer})
        self._machine = machine
        self._interrupt = interrupt
        self._link = link
        self._taken = link["answer_number"]
        self._pending = False

    def look(self) -> bool:
        """Take a request that the host rang for; True if there was one."""
        withdrawals = self._link.noticed("withdraw_number")
        number = self._link.noticed("ring_number")
        if self._pending or number == self._taken:
            return False
        self._taken = number
        self.store_words("data_0", bytes(self._link.request))
        fences.consume()
        if self._link["withdraw_number"] != withdrawals:
            return False  # it is not wanted any more, and what was copied may be half of the next one
        self._pending = True
        self._machine.set_interrupt(self._interrupt, True)
        return True

    def reset(self) -> None:
        """A request that was being dealt with is answered by saying that it will not be."""
        if self._pending:
            self._finish(MailboxResult.CORE_RESET)
        super().reset()

    def _answer(self, value: int) -> None:
        answer = MAILBOX.registers["answer"].decode(value)
        if answer["done"] and self._pending:
            self._finish(answer["result"])

    def _finish(self, result: int) -> None:
        self._link.answer[:] = self.words("data_0", _WORDS)
        self._link["answer_result"] = result
        self._link.announce("answer_number", self._taken)
        self._pending = False
        self._machine.set_interrupt(self._interrupt, False)
        self.look()
