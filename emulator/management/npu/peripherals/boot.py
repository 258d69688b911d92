"""The boot block: post codes for the host, what the boot ROM found, one-time-programmed values."""

from __future__ import annotations

from driver_shim.protocol.management_registers import BOOT
from driver_shim.protocol.registers import CoreReset
from emulator.management.npu.boot_record import BootRecord
from emulator.management.npu.one_time import OneTimeValues
from emulator.management.npu.peripherals.register_block import RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort

_WORD_MASK = 0xFFFF_FFFF
_BOOTS_MASK = BOOT.registers["boots"].fields["count"].mask


class BootBlock(RegisterPeripheral):
    """Registers of `management_registers.BOOT`."""

    def __init__(self, machine: MachinePort, record: BootRecord, one_time: OneTimeValues) -> None:
        super().__init__(
            BOOT,
            reads={
                "boot_status": self._boot_status,
                "version_low": lambda: record.version & _WORD_MASK,
                "version_high": lambda: record.version >> 32,
                "boots": lambda: record.boots & _BOOTS_MASK,
                "security_counter": lambda: one_time.security_counter,
            },
            writes={
                "post_code": record.set_post_code,
                "build_id": record.set_build_id,
                "reset_request": self._request_reset,
                "security_counter": one_time.raise_security_counter,
            },
        )
        self._machine = machine
        self._record = record
        self.store_words("key_hash_0", one_time.key_hash)
        self.store("hardware_id", one_time.hardware_id)

    def reset(self) -> None:
        """Post code and build id are the boot record's, which the boot ROM writes anew; the rest is for ever."""

    def _boot_status(self) -> int:
        record = self._record
        return BOOT.registers["boot_status"].encode(
            reason=int(record.reason), slot=int(record.slot), trial=int(record.trial)
        )

    def _request_reset(self, value: int) -> None:
        if BOOT.registers["reset_request"].extract(value, "request"):
            self._machine.request_reset(CoreReset.FIRMWARE)
