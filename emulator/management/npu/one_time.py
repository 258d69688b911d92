"""One-time-programmed values and the monotonic security counter."""

from __future__ import annotations

from driver_shim.protocol.layout import FieldError, Layout, raw, u32

ONE_TIME_MAGIC = 0x5054_4F4E
ONE_TIME_VERSION = 1
KEY_HASH_BYTES = 32

ONE_TIME = Layout(
    "one_time_values",
    48,
    "magic" / u32,
    "version" / u32,
    "security_counter" / u32,
    "hardware_id" / u32,
    "key_hash" / raw(KEY_HASH_BYTES),
)


class OneTimeError(ValueError):
    """The memory does not hold one-time values that we understand."""


def fresh_values(hardware_id: int, key_hash: bytes) -> bytes:
    """What a chip is made with."""
    return ONE_TIME.build(magic=ONE_TIME_MAGIC, version=ONE_TIME_VERSION, hardware_id=hardware_id, key_hash=key_hash)


class OneTimeValues:
    """The values, over memory that outlives the process that uses it."""

    def __init__(self, memory: memoryview) -> None:
        """Raises OneTimeError."""
        try:
            found = ONE_TIME.parse(memory[: ONE_TIME.size])
        except FieldError as error:
            raise OneTimeError(str(error)) from error
        if found.magic != ONE_TIME_MAGIC or found.version != ONE_TIME_VERSION:
            raise OneTimeError(f"magic {found.magic:#x}, version {found.version}; version {ONE_TIME_VERSION} is known")
        self.hardware_id = int(found.hardware_id)
        self.key_hash = bytes(found.key_hash)
        at = ONE_TIME.offset_of("security_counter")
        self._counter = memory[at : at + 4].cast("I")

    @property
    def security_counter(self) -> int:
        """Images with a lower one do not boot."""
        return int(self._counter[0])

    def raise_security_counter(self, value: int) -> None:
        """Burn it up to `value`; it never goes down."""
        self._counter[0] = max(self._counter[0], value)
