"""The management core: how long it takes to boot, to answer, and to be given new firmware."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from benchmarks.figures import Figure
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.bring_up import enable_function
from driver_shim.function.dma import HostMemory
from driver_shim.function.registers import Registers
from driver_shim.protocol.firmware_slots import LOAD_ADDRESS
from driver_shim.protocol.image import ImageVersion, ParsedImage, parse_image
from driver_shim.protocol.management_registers import HARDWARE_ID
from driver_shim.protocol.registers import Post
from driver_shim.transport.vfio_user import VfioUserTransport
from firmware_tools.flash_plan import make_plan, read_state
from firmware_tools.flashing import execute
from firmware_tools.image import ImageContents, build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_private_key
from firmware_tools.signing import KeySigner, sign_image
from sdk.cli.measurements import Spread, timed_rounds
from sdk.opening.private_emulator import PrivateEmulator

ADDRESS = "emulator:generic"
BOOT_LIMIT_S = 60.0
PINGS = 500
BY_DMA_BYTES = 512 * 1024
STAGED_BYTES = 64 * 1024


def figures() -> list[Figure]:
    """All figures of this topic, from an emulator of their own."""
    began = time.monotonic()
    emulator = PrivateEmulator("generic", "auto")
    try:
        with closing(VfioUserTransport.from_socket(emulator.socket, address=ADDRESS)) as transport:
            registers = Registers(transport)
            enable_function(transport)
            _wait_for_firmware(registers)
            boot_s = time.monotonic() - began
            firmware = Firmware(Mailbox(transport, registers))
            pings = Spread.of(timed_rounds(firmware.ping, PINGS))
            with HostMemory(transport) as memory:
                by_dma_s = _seconds(lambda: _flash(firmware, BY_DMA_BYTES, memory))
            staged_s = _seconds(lambda: _flash(firmware, STAGED_BYTES, None))
    finally:
        emulator.stop()
    return [
        Figure("emulator and firmware up", boot_s, "s"),
        Figure("mailbox ping, p50", pings.p50, "µs"),
        Figure("mailbox ping, p99", pings.p99, "µs"),
        Figure(f"flash {BY_DMA_BYTES >> 10} KiB by DMA", by_dma_s, "s"),
        Figure(f"flash {STAGED_BYTES >> 10} KiB by mailbox", staged_s, "s"),
    ]


def _wait_for_firmware(registers: Registers) -> None:
    deadline = time.monotonic() + BOOT_LIMIT_S
    while registers.boot_progress.post_code != Post.FIRMWARE_READY:
        if time.monotonic() > deadline:
            raise TimeoutError("the firmware does not come up")
        time.sleep(0.001)


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _flash(firmware: Firmware, size: int, memory: HostMemory | None) -> None:
    plan = make_plan(read_state(firmware), _image(size), [], by_dma=memory is not None)
    execute(firmware, plan, memory, lambda _: None)


def _image(size: int) -> ParsedImage:
    """A signed image of about this size; it is never booted."""
    payload = size.to_bytes(4, "little") * (size // 4)
    contents = ImageContents(payload, ImageVersion(9), LOAD_ADDRESS, security_counter=1, hardware_ids=(HARDWARE_ID,))
    return parse_image(sign_image(parse_image(build_image(contents)), [KeySigner(load_private_key(DEVELOPMENT_KEY))]))
