"""`npuctl fw flash`: put a firmware image on devices, by a plan that is shown first."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from driver_shim.protocol.image import ParsedImage
from firmware_tools.activation import activate
from firmware_tools.flash_plan import (
    ALLOW_DOWNGRADE,
    ALLOW_NO_HARDWARE_ID,
    ALLOW_REINSTALL,
    Action,
    FlashPlan,
    Verdict,
    make_plan,
    read_state,
)
from firmware_tools.flashing import FlashInterrupted, Outcome, Progress, Report, execute
from sdk.cli import timeouts
from sdk.cli.device_selection import OPENED_WITH_RESET, changed, confirm, device_option, open_core, require_unheld
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.firmware_facts import slot_facts, slot_name, slot_state
from sdk.cli.frame import Frame
from sdk.cli.fw.activation_report import activation_facts, activation_text, verdict_on_image
from sdk.cli.fw.options import image_argument, read_image
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.management import Management

WIDTH = 80
_MARKS = {
    Verdict.PASS: "ok",
    Verdict.OVERRIDDEN: "allowed",
    Verdict.LEFT_TO_DEVICE: "device",
    Verdict.NOTHING_TO_DO: "same",
    Verdict.REFUSE: "REFUSE",
}
_INDENT = 2 + 9 + 18


@verb("fw flash", limit_s=timeouts.WORK_S, changes=True)
@image_argument
@device_option
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing (exit 1 if it is refused).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--activate", "and_activate", is_flag=True, help="Reset the core then, and tell what came up.")
@click.option(ALLOW_DOWNGRADE, is_flag=True, help="Flash an image that is older than the running one.")
@click.option(ALLOW_REINSTALL, is_flag=True, help="Flash an image that a slot holds already.")
@click.option("--allow-no-hwid", is_flag=True, help="Flash an image that does not say which hardware it is for.")
def command(
    frame: Frame,
    image: Path,
    wanted: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    and_activate: bool,
    allow_downgrade: bool,
    allow_reinstall: bool,
    allow_no_hwid: bool,
) -> None:
    """Put the firmware IMAGE into the slot that does not run.

    The plan is shown first: what runs, what is flashed, each guard and the option that lifts it. The device verifies
    the image before it writes. It runs only after a reset of the core, once, on trial: `npuctl fw confirm` keeps it.

    Ctrl-C ends the update in order; the same command then goes on where it was. Exits 0 when there is nothing to do,
    1 when a guard or the device refuses, 5 when the image did not come up.
    """
    offered = read_image(image)
    given = {
        ALLOW_DOWNGRADE: allow_downgrade,
        ALLOW_REINSTALL: allow_reinstall,
        ALLOW_NO_HARDWARE_ID: allow_no_hwid,
    }
    overrides = [option for option, on in given.items() if on]
    for device in changed(wanted):
        try:
            require_unheld(device.address)
            with open_core(device.address) as opened:
                run = _Run(frame, device.address, opened, image, offered)
                run.plan(overrides, and_activate)
                run.check()
                if not dry_run:
                    run.carry_out(yes, and_activate)
        except FlashInterrupted as interrupted:
            frame.fail(Failure(str(interrupted), ExitCode.INTERRUPTED, slug="interrupted"), device.address)
            return
        except (NpuError, Failure) as error:
            frame.fail(verdict_on_image(error), device.address)


class _Run:
    """One image and one device."""

    def __init__(self, frame: Frame, address: str, opened: Management, path: Path, offered: ParsedImage) -> None:
        self._frame = frame
        self._address = address
        self._opened = opened
        self._path = path
        self._offered = offered
        self._entry: dict[str, Any] = {}

    def plan(self, overrides: list[str], and_activate: bool) -> None:
        """Look, show and report. Raises FirmwareError and the like."""
        opened = self._opened
        by_dma = opened.memory is not None
        self._plan = make_plan(read_state(opened.firmware), self._offered, overrides, by_dma=by_dma)
        self._entry = {
            "address": self._address,
            "opened_with_reset": opened.opened_with_reset,
            "plan": plan_facts(self._plan, self._path, and_activate),
            "outcome": None,
            "activation": None,
        }
        self._frame.add(self._entry)
        self._frame.say(self._address + (f" ({OPENED_WITH_RESET})" if opened.opened_with_reset else ""))
        for line in plan_lines(self._plan, self._path, and_activate):
            self._frame.say(line)

    def check(self) -> None:
        """Raise Failure when the plan says no: a script that only asks is told as well."""
        if self._plan.action is Action.REFUSED:
            raise Failure(_refusal(self._plan), slug="refused")

    def carry_out(self, yes: bool, and_activate: bool) -> None:
        """Do it, unless there is nothing to do. Raises Failure when the user says no."""
        plan, firmware = self._plan, self._opened.firmware
        if plan.action is Action.NOTHING:
            if and_activate and plan.waits_for_reset:
                confirm(f"Reset the core of {self._address} to try {plan.image.version}?", yes)
                self._activate(None)
            return
        confirm(f"Flash {plan.image.version} into slot {plan.target.name} of {self._address}?", yes)
        with _progress_bar(self._frame) as report:
            outcome = execute(firmware, plan, self._opened.memory, report)
        self._entry["outcome"] = outcome_facts(outcome)
        kept = f", {outcome.kept_bytes:,} bytes of it kept from before" if outcome.kept_bytes else ""
        self._frame.say(f"slot {outcome.slot.name}: {plan.image.version} written and verified{kept}")
        if and_activate:
            self._activate(outcome)
        else:
            self._frame.say("it runs after a reset of the core: the same command with --activate does that")

    def _activate(self, outcome: Outcome | None) -> None:
        """Reset the core and tell what came up. `outcome` is of the flashing, if there was any."""
        plan, version = self._plan, self._plan.image.version
        target = plan.target if outcome else plan.state.pending
        activated = False
        self._frame.say("resetting the core (one that hangs is ended by its watchdog within seconds)")
        try:
            found = activate(self._opened.firmware, target, version, plan.state.boots)
            activated = True
            self._entry["activation"] = activation_facts(found)
            self._frame.say(activation_text(found))
            if found.on_trial:
                self._frame.say("npuctl fw confirm keeps it; any other reset of the core falls back")
        except KeyboardInterrupt:
            told = f"interrupted while the core was starting with {version}: npuctl fw info shows what runs"
            raise FlashInterrupted(told) from None
        finally:
            if outcome:
                self._entry["outcome"] = outcome_facts(outcome._replace(activated=activated, needs_reset=False))


def _refusal(plan: FlashPlan) -> str:
    against = [guard for guard in plan.guards if guard.verdict is Verdict.REFUSE]
    reasons = "; ".join(f"{guard.finding}" for guard in against)
    options = " ".join(guard.override for guard in against if guard.override)
    hopeless = any(guard.override is None for guard in against)
    return f"{plan.image.version} is not flashed: {reasons}" + (f" ({options} allows it)" if not hopeless else "")


# --- documents ------------------------------------------------------------------------------------------------------


def plan_facts(plan: FlashPlan, path: Path, and_activate: bool) -> dict[str, Any]:
    """The plan's keys."""
    state, image = plan.state, plan.image
    return {
        "action": plan.action.value,
        "running": {
            "slot": slot_name(state.running),
            "version": str(state.version),
            "on_trial": state.on_trial,
        },
        "slots": [slot_facts(slot) for slot in state.slots],
        "pending_slot": slot_name(state.pending),
        "offered": {
            "path": str(path),
            "version": str(image.version),
            "image_bytes": len(image.data),
            "security_counter": image.security_counter,
            "hardware_ids": [f"{hardware:#010x}" for hardware in image.hardware_ids],
            "hash": image.stated_digest.hex(),
        },
        "target_slot": slot_name(plan.target),
        "guards": [{**guard._asdict(), "verdict": guard.verdict.value} for guard in plan.guards],
        "steps": list(_steps(plan, and_activate)),
        "needs_reset": plan.needs_reset,
    }


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """The outcome's keys."""
    return {**outcome._asdict(), "slot": slot_name(outcome.slot)}


# --- text -----------------------------------------------------------------------------------------------------------


def plan_lines(plan: FlashPlan, path: Path, and_activate: bool) -> Iterator[str]:
    """The plan within 80 columns; paths alone may be longer."""
    state, image = plan.state, plan.image
    where = f"slot {state.running.name}" if state.running else "loaded from outside"
    yield f"  running  {state.version}, {where}" + (", on trial" if state.on_trial else "")
    for slot in state.slots:
        version = "" if slot.empty else f"{slot.version}, "
        yield f"  slot {slot.slot.name}   {version}{slot_state(slot, state.running, state.on_trial)}"
    yield f"  offered  {image.version}, {len(image.data):,} bytes, {path}"
    yield "guards"
    for guard in plan.guards:
        head = f"  {_MARKS[guard.verdict]:<9}{guard.name:<18}"
        first, *more = textwrap.wrap(guard.finding, WIDTH - _INDENT, break_on_hyphens=False)
        yield head + first
        for line in more:
            yield " " * _INDENT + line
        if guard.override and guard.verdict in (Verdict.REFUSE, Verdict.NOTHING_TO_DO):
            yield " " * _INDENT + f"→ {guard.override} lifts this"
    steps = list(_steps(plan, and_activate))
    if steps:
        yield "plan"
    elif plan.action is Action.NOTHING:
        yield "nothing to do"
    for number, step in enumerate(steps, 1):
        yield f"  {number}. {step}"


def _steps(plan: FlashPlan, and_activate: bool) -> Iterator[str]:
    if plan.action is Action.FLASH:
        yield from plan.steps
    if and_activate and (plan.action is Action.FLASH or plan.waits_for_reset):
        yield "reset the management core, and see what comes up"


@contextmanager
def _progress_bar(frame: Frame) -> Iterator[Report]:
    """Shows progress on a terminal's stderr, else nothing."""
    if frame.as_json or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:12}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")

        def report(progress: Progress) -> None:
            bars.update(
                task, description=progress.phase, completed=progress.done_bytes, total=progress.total_bytes or None
            )

        yield report
