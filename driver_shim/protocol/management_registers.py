"""The management core's own bus: where its memories and peripherals lie, and the registers of ours.

The addresses follow QEMU's `virt` board; what that board has (UART, timer, interrupt controller, power-off) is known by
its own specifications and not declared here. All registers are 32 bits wide; nothing here is seen by the host.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from driver_shim.protocol.register_kinds import Access, Field, Register, RegisterMap, ResetDomain

RAM_BASE = 0x8000_0000
FLASH_BASE = 0x2000_0000
"""The whole flash can be read here."""
POWER_OFF_BASE = 0x0010_0000
CLINT_BASE = 0x0200_0000
PLIC_BASE = 0x0C00_0000
UART_BASE = 0x1000_0000
UART_INTERRUPT = 10
MTIME_HERTZ = 10_000_000
CORE_HERTZ = 100_000_000
HARDWARE_ID = 0x4E50_0001
"""One-time-programmed: which boards an image must be made for, in its TLV 0x00A0."""
BLOCK_BYTES = 0x1000
WATCHDOG_FEED = 0x5AFE

RO, RW, RW1C, W1S, WO = Access.RO, Access.RW, Access.RW1C, Access.W1S, Access.WO
COLD = ResetDomain.COLD


def _word(name: str, offset: int, doc: str, *fields: Field) -> Register:
    return Register(name, offset, 4, doc, *fields, domain=COLD)


def _words(name: str, offset: int, count: int, doc: str, access: Access) -> tuple[Register, ...]:
    """`count` registers `name_0` …, one after the other."""
    return tuple(
        _word(f"{name}_{i}", offset + 4 * i, doc, Field("value", 0, 32, access, "Little-endian, lowest word first."))
        for i in range(count)
    )


class FlashCommand(enum.IntEnum):
    """`flash.command.operation`."""

    ERASE_SECTOR = 1
    PROGRAM_PAGE = 2


class CryptoOperation(enum.IntEnum):
    """`crypto.command.operation`."""

    SHA256_START = 1
    SHA512_START = 2
    HASH_UPDATE = 3
    """Hash `length` bytes of the core's memory at `source`."""
    HASH_FINISH = 4
    """The digest is in `digest_*`, 32 or 64 bytes."""
    ED25519_VERIFY = 5
    """Check `signature_*` by `public_key_*` over `length` bytes at `source`; `status.verified` tells."""


class DmaStatus(enum.IntEnum):
    """`dma.status.state`."""

    IDLE = 0
    BUSY = 1
    DONE = 2
    FAULT = 3
    """The host did not allow it: bus mastering is off, or the address is not mapped."""


class Block(NamedTuple):
    """One peripheral: `BLOCK_BYTES` bytes at `base`."""

    name: str
    base: int
    interrupt: int
    """Its input at the interrupt controller; 0 when it has none."""
    doc: str
    registers: RegisterMap


BOOT = Block(
    "boot",
    0x1001_0000,
    0,
    "What the boot ROM found, what the core tells of its boot, and the one-time-programmed values.",
    RegisterMap(
        BLOCK_BYTES,
        _word(
            "post_code", 0x00, "How far the firmware has come; the host reads it as boot_progress.post_code.",
            Field("code", 0, 16, RW, "See Post."),
        ),
        _word(
            "boot_status", 0x04, "How the running image was chosen.",
            Field("reason", 0, 8, RO, "Why the core was reset, see CoreReset."),
            Field("slot", 8, 2, RO, "Slot that was booted: 1 is A, 2 is B, 0 an image loaded from outside."),
            Field("trial", 10, 1, RO, "It is on trial: confirm it, or the next reset falls back."),
        ),
        _word("version_low", 0x08, "Running image's version.", Field("value", 0, 32, RO, "Major, minor, revision.")),
        _word("version_high", 0x0C, "Running image's build number.", Field("value", 0, 32, RO, "Build.")),
        _word(
            "build_id", 0x10, "First four bytes of the firmware's build id, for the host.",
            Field("value", 0, 32, RW, "The firmware writes it as it starts."),
        ),
        _word(
            "reset_request", 0x14, "Resets the core.", Field("request", 0, 1, W1S, "Writing one resets; reads zero.")
        ),
        _word(
            "boots", 0x18, "Core resets since power-on.", Field("count", 0, 16, RO, "Modulo 2^16.")
        ),
        _word(
            "security_counter", 0x20, "One-time-programmed: images with a lower security counter do not boot.",
            Field("value", 0, 32, RW, "Writes can only raise it; others change nothing."),
        ),
        _word(
            "hardware_id", 0x24, "One-time-programmed: what an image's hardware ids must name.",
            Field("value", 0, 32, RO, "See HARDWARE_ID.", HARDWARE_ID),
        ),
        *_words("key_hash", 0x40, 8, "One-time-programmed SHA-256 of the key that images are signed with.", RO),
    ),
)  # fmt: skip
MAILBOX = Block(
    "mailbox",
    0x1001_1000,
    11,
    "The host's requests. The interrupt is raised while a request waits.",
    RegisterMap(
        BLOCK_BYTES,
        _word("request", 0x00, "Whether a request waits.", Field("pending", 0, 1, RO, "Set by the host's ring.")),
        _word(
            "answer", 0x04, "Hands the answer in data_* to the host.",
            Field("result", 0, 16, RW, "See MailboxResult."),
            Field("done", 31, 1, W1S, "Writing one completes the request; reads zero."),
        ),
        *_words("data", 0x100, 64, "The data window.", RW),
    ),
)  # fmt: skip
DMA = Block(
    "dma",
    0x1001_2000,
    12,
    "Copies host memory into the core's. The interrupt is raised by done and fault, and falls when status is cleared.",
    RegisterMap(
        BLOCK_BYTES,
        _word("address_low", 0x00, "Bus address, low half.", Field("value", 0, 32, RW, "In the host's mappings.")),
        _word("address_high", 0x04, "Bus address, high half.", Field("value", 0, 32, RW, "In the host's mappings.")),
        _word("destination", 0x08, "Where to in RAM.", Field("address", 0, 32, RW, "Any alignment.")),
        _word("length", 0x0C, "How much.", Field("bytes", 0, 32, RW, "1 to 65536; else it is a fault.")),
        _word("command", 0x10, "Starts a copy.", Field("start", 0, 1, W1S, "Ignored while busy; reads zero.")),
        _word(
            "status", 0x14, "How it went.",
            Field("state", 0, 2, RO, "See DmaStatus."),
            Field("clear", 31, 1, W1S, "Writing one makes done and fault idle; reads zero."),
        ),
    ),
)  # fmt: skip
FLASH = Block(
    "flash",
    0x1001_3000,
    0,
    "Erases and programs flash. Programming only clears bits. The core stands still meanwhile.",
    RegisterMap(
        BLOCK_BYTES,
        _word("address", 0x00, "Offset in flash.", Field("offset", 0, 32, RW, "Anywhere in the sector or page.")),
        _word("command", 0x04, "Starts an operation.", Field("operation", 0, 4, WO, "See FlashCommand.")),
        _word(
            "status", 0x08, "How the last operation went.",
            Field("failed", 0, 1, RO, "Wrong address or operation, worn out, or a bit that is not erased."),
        ),
        _word("sectors", 0x0C, "Size of the flash.", Field("count", 0, 32, RO, "In sectors of 4 KiB.")),
        *_words("page", 0x100, 64, "What PROGRAM_PAGE writes: 256 bytes.", RW),
    ),
)  # fmt: skip
CRYPTO = Block(
    "crypto",
    0x1001_4000,
    0,
    "SHA-256, SHA-512 and Ed25519 verification over the core's memory.",
    RegisterMap(
        BLOCK_BYTES,
        _word("source", 0x00, "Address in the core's memory.", Field("address", 0, 32, RW, "RAM or flash.")),
        _word("length", 0x04, "How much.", Field("bytes", 0, 32, RW, "Any number.")),
        _word("command", 0x08, "Starts an operation.", Field("operation", 0, 4, WO, "See CryptoOperation.")),
        _word(
            "status", 0x0C, "How the last operation went.",
            Field("verified", 0, 1, RO, "The signature is good."),
            Field("failed", 1, 1, RO, "No such memory, no such operation, or no hash was started."),
        ),
        *_words("digest", 0x40, 16, "The finished hash, as bytes in memory order.", RO),
        *_words("public_key", 0x100, 8, "Ed25519 public key, 32 bytes.", RW),
        *_words("signature", 0x140, 16, "Ed25519 signature, 64 bytes.", RW),
    ),
)  # fmt: skip
SENSORS = Block(
    "sensors",
    0x1001_5000,
    0,
    "Converters on the die, the clock's throttle, and the readings that the host sees.",
    RegisterMap(
        BLOCK_BYTES,
        _word(
            "temperature_raw", 0x00, "Temperature converter.",
            Field("code", 0, 12, RO, "Celsius = code / 16 - 64."),
        ),
        _word("current_raw", 0x04, "Current converter.", Field("code", 0, 16, RO, "Ampere = code / 256.")),
        _word("voltage_raw", 0x08, "Voltage converter.", Field("code", 0, 12, RO, "Volt = code / 2048.")),
        _word(
            "throttle", 0x0C, "Slows the engines down.",
            Field("level", 0, 3, RW, "Engines do 8 - level eighths of their work a tick."),
        ),
        _word("temperature", 0x10, "For the host.", Field("millicelsius", 0, 32, RW, "Two's complement.")),
        _word("power", 0x14, "For the host.", Field("milliwatts", 0, 32, RW, "Of the whole chip.")),
        _word("voltage", 0x18, "For the host.", Field("millivolts", 0, 32, RW, "Of the engines' supply.")),
        _word("publish", 0x1C, "Shows the readings to the host.", Field("now", 0, 1, W1S, "Reads zero.")),
    ),
)  # fmt: skip
WATCHDOG = Block(
    "watchdog",
    0x1001_6000,
    0,
    "Resets the core unless it is fed. The boot ROM starts it before it starts an image from a slot.",
    RegisterMap(
        BLOCK_BYTES,
        _word("period", 0x00, "Longest time between feeds.", Field("milliseconds", 0, 32, RW, "10 to 60000.")),
        _word("feed", 0x04, "Feeds it.", Field("value", 0, 32, WO, "0x5afe, and starts it; others do nothing.")),
        _word("status", 0x08, "Whether it runs.", Field("running", 0, 1, RO, "Only a reset stops it.")),
    ),
)  # fmt: skip

MANAGEMENT_BLOCKS = (BOOT, MAILBOX, DMA, FLASH, CRYPTO, SENSORS, WATCHDOG)
