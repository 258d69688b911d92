"""State of the management core as registers show it, whether or not its firmware answers."""

from __future__ import annotations

from typing import NamedTuple

from driver_shim.function.registers import Registers
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.registers import NEVER_MEASURED, REGISTERS, CoreReset, Post
from driver_shim.protocol.slugs import slug_of

STALE_MILLISECONDS = 1000
"""Firmware publishes its readings twice a second or more; older ones are history, not what the device has now."""
_SIGN_BIT = 1 << 31


class Explanation(NamedTuple):
    """Why the firmware does not answer."""

    code: str
    why: str
    remedy: str


_RESTART = "reset the core (npuctl regs --unsafe core_control=2) or the device (npuctl reset)"
_SILENT: dict[int, Explanation] = {
    Post.ABSENT: Explanation(
        "core-absent",
        "there is no management core",
        "an emulator has one with the extra: pip install 'npu-sdk[firmware]'",
    ),
    Post.HELD: Explanation(
        "core-held",
        "the management core is held in reset",
        "let it run: npuctl regs --unsafe core_control=0",
    ),
    Post.RECOVERY: Explanation(
        "core-in-recovery",
        "no slot holds an image that boots; the boot ROM waits for one",
        "send one to the USB debug port, by DFU",
    ),
    Post.POWERED_OFF: Explanation("core-powered-off", "the firmware has switched the management core off", _RESTART),
    Post.LOST: Explanation("core-lost", "the management core broke down", "reset the device: npuctl reset"),
}


class BootProgress(NamedTuple):
    """The boot_progress register."""

    post_code: int
    reason: int
    slot: int
    """1 is A, 2 is B, 0 none or an image loaded from outside."""
    on_trial: bool

    @property
    def stage(self) -> str:
        """The stage in kebab-case: "firmware-ready"; a code of the firmware's own as a number: "0x0045"."""
        return slug_of(Post, self.post_code, f"{self.post_code:#06x}")

    @property
    def boot_reason(self) -> str | None:
        """Why the core was last reset: "power-on"; None without a core."""
        return slug_of(CoreReset, self.reason, f"reason-{self.reason}") if self.reason else None

    @property
    def slot_name(self) -> str | None:
        """ "A" or "B"; None when no slot's image runs."""
        return Slot(self.slot).name if self.slot in (Slot.A, Slot.B) else None

    @property
    def runs_image(self) -> bool:
        """Whether an image was started and has the core; it may be on its way up, or be in trouble."""
        return self.post_code >= Post.HANDED_OVER and self.post_code not in _SILENT

    @property
    def explanation(self) -> Explanation | None:
        """Why no firmware will answer; None where one runs or is on its way."""
        return _SILENT.get(self.post_code)


def read_boot_progress(registers: Registers) -> BootProgress:
    """Read it. Raises DeviceLost."""
    found = registers.boot_progress.fields()
    return BootProgress(found["post_code"], found["boot_reason"], found["slot"], bool(found["trial"]))


def image_version(value: int) -> ImageVersion:
    """A version as registers and mailbox have it: 64 bits, as they lie in the image's header."""
    return ImageVersion(**REGISTERS["firmware_version"].decode(value))


def read_firmware_version(registers: Registers) -> ImageVersion | None:
    """The version of the image that runs; None when none does. Raises DeviceLost."""
    if not read_boot_progress(registers).runs_image:
        return None
    return image_version(registers.firmware_version.read())


class SensorReadings(NamedTuple):
    """What the firmware last measured, by the device's own clock."""

    temperature_celsius: float
    power_watts: float
    voltage_volts: float
    throttle: int
    """Engines do 8 - throttle eighths of their work a tick."""
    age_seconds: float


def read_sensors(registers: Registers) -> SensorReadings | None:
    """Read them; None when there are none or they are older than a second. Raises DeviceLost."""
    age = registers.sensor_age.read()
    if age == NEVER_MEASURED or age > STALE_MILLISECONDS:
        return None
    return SensorReadings(
        temperature_celsius=signed(registers.sensor_temperature.read()) / 1000,
        power_watts=registers.sensor_power.read() / 1000,
        voltage_volts=registers.sensor_voltage.read() / 1000,
        throttle=registers.throttle.level,
        age_seconds=age / 1000,
    )


def signed(value: int) -> int:
    """A 32-bit register value as two's complement."""
    return value - 2 * _SIGN_BIT if value & _SIGN_BIT else value
