"""`npuctl fw log`: what the firmware logged, each record read with the texts of the build that wrote it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from driver_shim.errors import FirmwareError, Timeout
from driver_shim.firmware.answers import LogRecord
from driver_shim.firmware.calls import Firmware
from driver_shim.protocol.mailbox import LogLevel, MailboxResult
from firmware_tools.log_strings import read_elf, shipped
from firmware_tools.logs import DecodedRecord, LogDecoder
from sdk.cli import timeouts
from sdk.cli.device_selection import device_option, no_open_option, open_core, queried
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.listing import DeviceInfo

LEVELS = tuple(level.name.lower() for level in LogLevel)
_SEQUENCES = 1 << 32
_HALF = _SEQUENCES // 2


def _limit_s(options: Mapping[str, Any]) -> float:
    return math.inf if options["follow"] else timeouts.QUERY_S


@verb("fw log", limit_s=_limit_s)
@device_option
@click.option(
    "--elf",
    "elf_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Firmware's ELF file, for the texts of its build; repeatable.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until Ctrl-C.")
@click.option("--level", type=click.Choice(LEVELS), default=LEVELS[0], help="The least level to show.")
@no_open_option
def command(frame: Frame, wanted: tuple[str, ...], elf_files: tuple[Path, ...], follow: bool, level: str) -> None:
    """Show the firmware's log; with --json a line each record.

    A log spans updates. Each record is read with the texts of the build that wrote it: of --elf, or of the firmware
    that comes with the emulator. Others are shown as numbers.
    """
    devices = queried(wanted, frame)
    if follow and len(devices) > 1:
        raise click.UsageError("--follow is of one device; name one with -d")
    decoder = LogDecoder([*(read_elf(path) for path in elf_files), *shipped()])
    for device in devices:
        try:
            _one_device(frame, device, _Printer(frame, device.address, decoder, LEVELS.index(level)), follow)
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)


def _one_device(frame: Frame, device: DeviceInfo, printer: _Printer, follow: bool) -> None:
    with open_core(device.address) as opened:
        if not follow:
            frame.say(device.address)
        reader = _Reader(frame, opened.firmware)
        for record in reader.kept():
            printer.show(record)
        while follow:
            for record in reader.more():
                printer.show(record)
            time.sleep(timeouts.LOG_FOLLOW_POLL_S)
    if not printer.shown:
        frame.say("no records")


class _Reader:
    """Records in order."""

    def __init__(self, frame: Frame, firmware: Firmware) -> None:
        self._frame = frame
        self._firmware = firmware
        self._next = 0
        self._silent = ""

    def kept(self) -> Iterator[LogRecord]:
        """What the device has at the moment. Raises FirmwareError and the like."""
        info = self._firmware.info()
        self._next = info.log_first
        left = (info.log_next - info.log_first) % _SEQUENCES
        while left > 0:
            records = self._batch()
            if not records:
                return
            yield from records
            left -= len(records)

    def more(self) -> Iterator[LogRecord]:
        """What was added since. A core that does not answer for a while is told of, and waited for."""
        while True:
            try:
                records = self._batch()
            except (FirmwareError, Timeout) as error:
                if isinstance(error, FirmwareError) and error.result not in (None, MailboxResult.CORE_RESET):
                    raise
                if error.message != self._silent:
                    self._frame.note(error.message)
                self._silent = error.message
                return
            self._silent = ""
            if not records:
                return
            yield from records

    def _batch(self) -> tuple[LogRecord, ...]:
        asked = self._next
        batch = self._firmware.read_log(asked)
        if not batch.records:
            return ()
        gap = (batch.records[0].sequence - asked) % _SEQUENCES
        if gap >= _HALF:
            self._frame.note("the log begins anew: the device was switched off and on")
        elif gap:
            self._frame.note(f"{gap} records were overwritten before they were read")
        self._next = batch.next
        if (batch.next - asked) % _SEQUENCES == 0:
            raise FirmwareError(
                f"{self._firmware.address}: the log does not go on after record {asked}",
                device=self._firmware.address,
                subsystem="firmware",
                remedy="update the firmware",
                code="bad-answer",
            )
        return batch.records


class _Printer:
    """Shows records of a level and above."""

    def __init__(self, frame: Frame, address: str, decoder: LogDecoder, least: int) -> None:
        self._frame = frame
        self._address = address
        self._decoder = decoder
        self._least = least
        self._told: set[str] = set()
        self.shown = 0

    def show(self, record: LogRecord) -> None:
        """One record, on a line of its own."""
        if record.level < self._least:
            return
        if not self.shown:
            self._frame.say("boot      device s  level    message")
        self.shown += 1
        decoded = self._decoder.decode(record)
        self._frame.emit(self._address, record=record_facts(decoded))
        self._frame.say(record_line(decoded))
        if decoded.problem and not self._frame.as_json and decoded.problem not in self._told:
            self._told.add(decoded.problem)
            self._frame.note(decoded.problem)


def record_line(decoded: DecodedRecord) -> str:
    """A record for people."""
    record = decoded.record
    build = f"build {record.build_id:08x}: " if decoded.problem else ""
    return f"{record.boot:4} {decoded.device_seconds:13.6f}  {decoded.level:7}  {build}{decoded.text}"


def record_facts(decoded: DecodedRecord) -> dict[str, Any]:
    """A record's keys."""
    record = decoded.record
    return {
        "sequence": record.sequence,
        "build_id": f"{record.build_id:08x}",
        "boot": record.boot,
        "clock": "device",
        "core_ticks": record.tick,
        "core_seconds": decoded.device_seconds,
        "level": decoded.level,
        "token": f"{record.token:#x}",
        "arguments": list(record.arguments[: record.argument_count]),
        "text": decoded.text,
        "problem": decoded.problem,
    }
