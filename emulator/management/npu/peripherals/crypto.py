"""The crypto engine: hashes and checks signatures over the core's memory, for firmware and boot ROM alike."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from driver_shim.protocol.management_registers import CRYPTO, CryptoOperation
from driver_shim.shared.ed25519 import ed25519_verify
from emulator.management.npu.peripherals.register_block import RegisterPeripheral
from emulator.management.riscv.peripheral import MachinePort

if TYPE_CHECKING:
    from hashlib import _Hash

_KEY_WORDS = 8
_SIGNATURE_WORDS = 16
_DIGEST_BYTES = 64


class CryptoEngine(RegisterPeripheral):
    """Registers of `management_registers.CRYPTO`."""

    def __init__(self, machine: MachinePort) -> None:
        super().__init__(CRYPTO, reads={"status": self._status}, writes={"command": self._command})
        self._machine = machine
        self._hash: _Hash | None = None
        self._verified = False
        self._failed = False

    def reset(self) -> None:
        """See Peripheral."""
        super().reset()
        self._hash = None
        self._verified = self._failed = False

    def _status(self) -> int:
        return CRYPTO.registers["status"].encode(verified=int(self._verified), failed=int(self._failed))

    def _command(self, value: int) -> None:
        self._verified = False
        self._failed = not self._carry_out(CRYPTO.registers["command"].extract(value & 0xF, "operation"))

    def _carry_out(self, operation: int) -> bool:
        """Do it; False when that was not possible."""
        if operation == CryptoOperation.SHA256_START:
            self._hash = hashlib.sha256()
            return True
        if operation == CryptoOperation.SHA512_START:
            self._hash = hashlib.sha512()
            return True
        if operation == CryptoOperation.HASH_UPDATE:
            message = self._message()
            if self._hash is None or message is None:
                return False
            self._hash.update(message)
            return True
        if operation == CryptoOperation.HASH_FINISH:
            if self._hash is None:
                return False
            self.store_words("digest_0", self._hash.digest().ljust(_DIGEST_BYTES, b"\0"))
            self._hash = None
            return True
        if operation == CryptoOperation.ED25519_VERIFY:
            message = self._message()
            if message is None:
                return False
            key, signature = self.words("public_key_0", _KEY_WORDS), self.words("signature_0", _SIGNATURE_WORDS)
            self._verified = ed25519_verify(key, signature, message)
            return True
        return False

    def _message(self) -> bytes | None:
        try:
            return self._machine.read_memory(self.value("source"), self.value("length"))
        except ValueError:
            return None
