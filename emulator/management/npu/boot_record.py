"""Facts of the running boot, kept where the host sees them."""

from __future__ import annotations

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.registers import REGISTERS, CoreReset, Post
from emulator.management.link import Link

_POST_CODE_MASK = REGISTERS["boot_progress"].fields["post_code"].mask


class BootRecord:
    """Post code, reason, slot and version, mirrored to the function's registers at each change."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.post_code = int(Post.BOOT_ROM)
        self.reason = CoreReset.POWER_ON
        self.slot = Slot.NONE
        self.trial = False
        self.version = 0
        self.boots = 0

    def begin(self, reason: CoreReset) -> None:
        """The core was reset: nothing runs yet."""
        if reason is not CoreReset.POWER_ON:
            self.boots += 1
        self.reason = reason
        self.chose(Slot.NONE, trial=False, version=0)
        self.set_build_id(0)
        self.set_post_code(Post.BOOT_ROM)

    def chose(self, slot: Slot, *, trial: bool, version: int) -> None:
        """The image that will run."""
        self.slot, self.trial, self.version = slot, trial, version
        self._link["version"] = version
        self._show()

    def set_post_code(self, code: int) -> None:
        """Show how far the boot has come."""
        self.post_code = code & _POST_CODE_MASK
        self._show()

    def set_build_id(self, value: int) -> None:
        """Show which build runs."""
        self._link["build_id"] = value

    def _show(self) -> None:
        self._link["boot_progress"] = REGISTERS["boot_progress"].encode(
            post_code=self.post_code, boot_reason=int(self.reason), slot=int(self.slot), trial=int(self.trial)
        )
