"""The register map of BAR0 and where everything lies in the BARs.

One declaration serves the emulator's behaviour, the driver's accessors (`driver_shim/function/registers.py`),
`npuctl regs` and docs/registers.md. The first 256 bytes never change from contract 1.0 on.
"""

from __future__ import annotations

import enum

from driver_shim.protocol.register_kinds import Access, Field, Register, RegisterMap, ResetDomain, ValidFrom

CONTRACT_MAJOR = 0
CONTRACT_MINOR = 5
IDENTITY = 0x5550_4E31
"""Value of the identity register: "1NPU" read as little-endian ASCII."""

BAR0, BAR2, BAR4 = 0, 2, 4
"""Registers, doorbells, and the aperture on device memory."""
BAR0_BYTES = 0x1_0000
MSIX_TABLE_OFFSET = 0x8000
MSIX_PBA_OFFSET = 0xC000
DOORBELL_PAGE_BYTES = 4096
SQ_TAIL_DOORBELL = 0
CQ_HEAD_DOORBELL = 4
FROZEN_BYTES = 256
ALL_ONES_32 = 0xFFFF_FFFF

RO, RW, RW1C, W1S, WO = Access.RO, Access.RW, Access.RW1C, Access.W1S, Access.WO
COLD, FUNCTION = ResetDomain.COLD, ResetDomain.FUNCTION


class Feature(enum.IntFlag):
    """Bits of the `features` register."""

    SHADOW_DOORBELLS = 1 << 0
    APERTURE = 1 << 1
    BLACK_BOX = 1 << 2


ALL_FEATURES = ~Feature(0)


class Post(enum.IntEnum):
    """`boot_progress.post_code`: how far the management core has come. Firmware may show other codes of its own."""

    ABSENT = 0x00
    """There is no management core; everything else works."""
    HELD = 0x01
    """`core_control.hold` keeps the core in reset."""
    BOOT_ROM = 0x10
    """The boot ROM runs."""
    CHECKING_A = 0x11
    """The boot ROM verifies the image in slot A."""
    CHECKING_B = 0x12
    HANDED_OVER = 0x1F
    """The boot ROM has started an image; from here on it is the image's to count."""
    FIRMWARE_START = 0x20
    FIRMWARE_DRIVERS = 0x30
    FIRMWARE_READY = 0x40
    """The mailbox is answered."""
    FIRMWARE_FAULT = 0xE0
    """The firmware's fault handler runs; the watchdog will reset the core."""
    RECOVERY = 0xF0
    """No slot holds an image that boots: the USB debug port takes one."""
    POWERED_OFF = 0xF1
    """The image has switched the core off."""
    LOST = 0xFF
    """The core broke down; a reset of the device starts it anew."""


class CoreReset(enum.IntEnum):
    """`boot_progress.boot_reason`: why the management core was last reset."""

    POWER_ON = 1
    HOST = 2
    """`core_control.reset`."""
    FIRMWARE = 3
    """The firmware asked for it."""
    WATCHDOG = 4
    FALL_BACK = 5
    """A trial image was reset before it was confirmed, so the confirmed one runs again."""
    RECOVERY = 6
    """`core_control.recovery`."""


CONSOLE_WINDOW_OFFSET = 0x2000
CONSOLE_WINDOW_BYTES = 0x1000
"""The last bytes that the core's UART sent: byte n lies at n modulo the window's size. Reads only, 4 or 8 bytes."""
MAILBOX_DATA_OFFSET = 0x500
MAILBOX_DATA_REGISTERS = 32
NEVER_MEASURED = 0xFFFF_FFFF
"""Value of `sensor_age` before the firmware has published a reading."""


REGISTERS = RegisterMap(
    BAR0_BYTES,
    Register(
        "identity",
        0x000,
        4,
        "Tells that this is one of our functions and that it answers.",
        Field("magic", 0, 32, RO, "Always 0x55504e31; all ones means the device is gone.", IDENTITY),
        domain=COLD,
    ),
    Register(
        "contract",
        0x004,
        4,
        "Version of the register and command contract that the device speaks.",
        Field("minor", 0, 16, RO, "Grows with compatible additions.", CONTRACT_MINOR),
        Field("major", 16, 16, RO, "Differs when queues would not be understood.", CONTRACT_MAJOR),
        domain=COLD,
    ),
    Register(
        "features",
        0x008,
        8,
        "Optional parts that the device has.",
        Field("bits", 0, 64, RO, "One bit a feature, see Feature.", int(ALL_FEATURES)),
        domain=COLD,
    ),
    Register(
        "revision",
        0x010,
        4,
        "Silicon revision; errata are looked up by it.",
        Field("minor", 0, 8, RO, "Metal layers."),
        Field("major", 8, 8, RO, "Base layers.", 1),
        domain=COLD,
    ),
    Register(
        "capabilities",
        0x014,
        4,
        "Limits that a driver checks before it enables the controller.",
        Field("max_queue_entries_log2", 0, 4, RO, "Largest ring, as a power of two.", 13),
        Field("max_io_queues", 4, 8, RO, "I/O queue pairs that can exist at once.", 31),
        Field("submission_bytes_log2", 12, 4, RO, "Size of a submission entry, as a power of two.", 6),
        Field("completion_bytes_log2", 16, 4, RO, "Size of a completion entry, as a power of two.", 5),
        Field("ready_timeout", 20, 8, RO, "Longest ready handshake in units of 100 ms.", 20),
        domain=COLD,
    ),
    Register(
        "control",
        0x018,
        4,
        "Enables the controller; clearing `enable` is a controller reset.",
        Field("enable", 0, 1, RW, "One starts the admin queue, zero deletes all queues and programs."),
    ),
    Register(
        "status",
        0x01C,
        4,
        "What state the controller is in.",
        Field("ready", 0, 1, RO, "Follows control.enable within capabilities.ready_timeout."),
        Field("fatal", 1, 1, RO, "The controller stopped; only a reset helps."),
        Field("config_error", 2, 1, RO, "Enable was refused: the admin queue registers are not usable."),
        Field("bus_master", 3, 1, RO, "The function may do DMA (PCI COMMAND bit 2)."),
    ),
    Register(
        "boot_progress",
        0x020,
        4,
        "How far the management core has booted.",
        Field("post_code", 0, 16, RO, "Stage reached, see Post; 0 means that there is no management core."),
        Field("boot_reason", 16, 8, RO, "Why the core was last reset, see CoreReset."),
        Field("slot", 24, 2, RO, "Slot whose image runs: 1 is A, 2 is B, 0 none or an image loaded from outside."),
        Field("trial", 26, 1, RO, "That image is on trial: unconfirmed, the next reset falls back."),
        domain=COLD,
    ),
    Register(
        "reset_cause",
        0x024,
        4,
        "Why the function was last reset, and how often since power-on.",
        Field("cause", 0, 8, RO, "See ResetCause."),
        Field("count", 8, 24, RO, "Resets since power-on, modulo 2^24."),
        domain=COLD,
    ),
    Register(
        "firmware_version",
        0x028,
        8,
        "Version of the image that runs on the management core.",
        Field("major", 0, 8, RO, "As the image's header has it."),
        Field("minor", 8, 8, RO, "As the image's header has it."),
        Field("revision", 16, 16, RO, "As the image's header has it."),
        Field("build", 32, 32, RO, "As the image's header has it."),
        domain=COLD,
        valid_from=ValidFrom.BOOT_ROM,
    ),
    Register(
        "admin_queue_size",
        0x030,
        4,
        "Entries of the admin rings, each a power of two.",
        Field("submission_entries", 0, 16, RW, "Entries of the admin submission ring."),
        Field("completion_entries", 16, 16, RW, "Entries of the admin completion ring."),
    ),
    Register(
        "admin_submission_base",
        0x038,
        8,
        "Bus address of the admin submission ring.",
        Field("address", 0, 64, RW, "Page-aligned, in a shareable mapping."),
    ),
    Register(
        "admin_completion_base",
        0x040,
        8,
        "Bus address of the admin completion ring.",
        Field("address", 0, 64, RW, "Page-aligned, in a shareable mapping."),
    ),
    Register(
        "firmware_build_id",
        0x048,
        4,
        "Which build runs on the management core; log records carry it too.",
        Field("value", 0, 32, RO, "First four bytes of the firmware's build id."),
        domain=COLD,
        valid_from=ValidFrom.FIRMWARE,
    ),
    Register(
        "interrupt_status",
        0x050,
        4,
        "Vectors raised since they were last cleared, whether or not they were delivered.",
        Field("vectors", 0, 32, RW1C, "One bit a vector."),
    ),
    Register(
        "interrupt_mask",
        0x054,
        4,
        "Vectors that are held back; they stay pending and fire when unmasked.",
        Field("vectors", 0, 32, RW, "One bit a vector, one holds it back."),
    ),
    Register(
        "fault_status",
        0x060,
        4,
        "Kinds of misuse and failure seen since they were last cleared.",
        Field("register", 0, 1, RW1C, "An access of wrong width, alignment, offset or reserved bits."),
        Field("aperture", 1, 1, RW1C, "An access to BAR4 beyond device memory."),
        Field("dma", 2, 1, RW1C, "DMA to an unmapped or forbidden bus address, or without bus mastering."),
        Field("queue", 3, 1, RW1C, "A queue pointer outside what its ring allows."),
        Field("command", 4, 1, RW1C, "A command that completed with an error."),
        Field("engine", 5, 1, RW1C, "An engine died."),
        Field("client", 6, 1, RW1C, "The host went away without closing the function."),
        domain=COLD,
    ),
    Register(
        "fault_count",
        0x064,
        4,
        "Faults recorded since power-on.",
        Field("count", 0, 32, RO, "Modulo 2^32; the error log holds the newest."),
        domain=COLD,
    ),
    Register(
        "fault_address",
        0x068,
        8,
        "Where the newest fault happened.",
        Field("address", 0, 64, RO, "Register offset, bus address or device address, as the error log entry says."),
        domain=COLD,
    ),
    Register(
        "device_memory_bytes",
        0x070,
        8,
        "Size of device memory; BAR4 covers it and is the next power of two.",
        Field("bytes", 0, 64, RO, "What this function may address."),
        domain=COLD,
    ),
    Register(
        "tick_hertz",
        0x078,
        8,
        "Frequency of the device tick counter.",
        Field("hertz", 0, 64, RO, "Ticks per second."),
        domain=COLD,
    ),
    Register(
        "clock_snapshot",
        0x080,
        4,
        "Takes tick and wall clock at one moment.",
        Field("take", 0, 1, W1S, "Writing one updates tick_snapshot and wall_snapshot; reads zero."),
    ),
    Register(
        "tick_snapshot",
        0x088,
        8,
        "Device ticks at the last snapshot: modelled work plus idle time, never backwards.",
        Field("ticks", 0, 64, RO, "Periods of tick_hertz since power-on."),
        domain=COLD,
    ),
    Register(
        "wall_snapshot",
        0x090,
        8,
        "Wall clock at the last snapshot.",
        Field("nanoseconds", 0, 64, RO, "CLOCK_MONOTONIC of the device's own side."),
        domain=COLD,
    ),
    Register(
        "scratch",
        0x0A0,
        4,
        "Free for the host; proves that writes arrive.",
        Field("value", 0, 32, RW, "No meaning to the device."),
    ),
    Register(
        "scratch_wide",
        0x0A8,
        8,
        "The same, 64 bits.",
        Field("value", 0, 64, RW, "No meaning to the device."),
    ),
    Register(
        "reset_history",
        0x0B0,
        8,
        "Causes of the last eight resets: whoever opens a function may reset it before looking at reset_cause.",
        Field("causes", 0, 64, RO, "One byte each, see ResetCause; the newest is the lowest, 0 where there was none."),
        domain=COLD,
    ),
    Register(
        "black_box",
        0x0B8,
        4,
        "What the black box holds, for whoever cannot read the log page yet.",
        Field("bytes", 0, 24, RO, "Size of the saved page; 0 when nothing was saved."),
        Field("cause", 24, 8, RO, "Why it was saved, see ResetCause."),
        domain=COLD,
    ),
    Register(
        "counter_snapshot",
        0x100,
        4,
        "Copies the running counters into the registers after it, so that they belong together.",
        Field("take", 0, 1, W1S, "Writing one updates all counters; reads zero."),
    ),
    Register(
        "commands_completed",
        0x108,
        8,
        "I/O and admin commands completed since power-on, at the last counter snapshot.",
        Field("count", 0, 64, RO, "Including failed ones."),
        domain=COLD,
    ),
    Register(
        "bytes_moved",
        0x110,
        8,
        "Bytes copied and filled by commands since power-on, at the last counter snapshot.",
        Field("bytes", 0, 64, RO, "Each copied byte counts once."),
        domain=COLD,
    ),
    Register(
        "busy_ticks",
        0x118,
        8,
        "Ticks that commands took since power-on, at the last counter snapshot.",
        Field("ticks", 0, 64, RO, "Sum over all commands."),
        domain=COLD,
    ),
    Register(
        "core_control",
        0x200,
        4,
        "Holds and resets the management core.",
        Field("hold", 0, 1, RW, "One keeps the core from running; zero lets it boot."),
        Field("reset", 1, 1, W1S, "Writing one resets the core; reads zero."),
        Field("recovery", 2, 1, W1S, "Writing one resets the core into recovery mode; reads zero."),
        domain=COLD,
    ),
    Register(
        "sensor_temperature",
        0x280,
        4,
        "Temperature of the die, as the firmware last published it.",
        Field("millicelsius", 0, 32, RO, "Two's complement; see sensor_age."),
        domain=COLD,
        valid_from=ValidFrom.FIRMWARE,
    ),
    Register(
        "sensor_power",
        0x284,
        4,
        "Power that the chip takes, as the firmware last published it.",
        Field("milliwatts", 0, 32, RO, "See sensor_age."),
        domain=COLD,
        valid_from=ValidFrom.FIRMWARE,
    ),
    Register(
        "sensor_voltage",
        0x288,
        4,
        "Voltage of the engines' supply, as the firmware last published it.",
        Field("millivolts", 0, 32, RO, "See sensor_age."),
        domain=COLD,
        valid_from=ValidFrom.FIRMWARE,
    ),
    Register(
        "sensor_age",
        0x28C,
        4,
        "How old the readings are: firmware that stopped publishes nothing.",
        Field("milliseconds", 0, 32, RO, "All ones when there are none.", NEVER_MEASURED),
        domain=COLD,
    ),
    Register(
        "throttle",
        0x290,
        4,
        "How much the firmware slows the engines down to keep the chip cool.",
        Field("level", 0, 3, RO, "Engines do 8 - level eighths of their work a tick."),
        domain=COLD,
    ),
    Register(
        "console_written",
        0x300,
        8,
        "Bytes that the management core's UART has sent since power-on; the last of them are in the console window.",
        Field("bytes", 0, 64, RO, "Where the next byte goes."),
        domain=COLD,
    ),
    Register(
        "console_input",
        0x308,
        4,
        "Sends a byte to the management core's UART.",
        Field("byte", 0, 8, WO, "Lost when console_room is zero."),
        domain=COLD,
    ),
    Register(
        "console_room",
        0x30C,
        4,
        "Bytes that console_input takes at the moment.",
        Field("bytes", 0, 16, RO, "Zero without a running core."),
        domain=COLD,
    ),
    Register(
        "mailbox_control",
        0x400,
        4,
        "Hands a request to the firmware, or takes it back.",
        Field("ring", 0, 1, W1S, "Writing one hands over what is in mailbox_data_*; a fault while busy; reads zero."),
        Field("withdraw", 1, 1, W1S, "Writing one makes the mailbox idle: the firmware's answer is lost; reads zero."),
    ),
    Register(
        "mailbox_status",
        0x404,
        4,
        "Where the request is.",
        Field("state", 0, 4, RO, "See MailboxState."),
        Field("result", 16, 16, RO, "See MailboxResult; valid when done."),
    ),
    *(
        Register(
            f"mailbox_data_{i}",
            MAILBOX_DATA_OFFSET + 8 * i,
            8,
            "Request and answer.",
            Field("value", 0, 64, RW, "Little-endian; the firmware's while the mailbox is busy."),
        )
        for i in range(MAILBOX_DATA_REGISTERS)
    ),
)
_CORE_OFFSET = 0x200
"""From here on all registers show the management core; before, those that were there first."""
CORE_REGISTERS = tuple(
    register
    for register in REGISTERS
    if register.offset >= _CORE_OFFSET or register.name in ("boot_progress", "firmware_version", "firmware_build_id")
)
