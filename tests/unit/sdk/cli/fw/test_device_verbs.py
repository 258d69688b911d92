"""The verbs that speak with firmware, against a scripted one: text within 80 columns, documents, exit codes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from driver_shim import timeouts as driver_timeouts
from driver_shim.firmware.answers import LogRecord
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.dma import HostMemory
from driver_shim.function.registers import Registers
from driver_shim.protocol import mailbox
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxCommand, MailboxResult, UpdateState
from driver_shim.protocol.registers import Post
from sdk.cli import console, timeouts
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.fw import confirm, flash, info, log, rollback
from sdk.errors import FirmwareError
from sdk.opening.listing import DeviceInfo
from sdk.opening.management import Management
from tests.support.firmware_images import image
from tests.support.npuctl import validator
from tests.support.scripted_core import ScriptedCore, scripted

ADDRESS = "vfio-user:/run/npu/npu0.sock"
VERBS = (confirm, flash, info, log, rollback, console)
FLASH: dict[str, Any] = {
    "dry_run": False,
    "yes": True,
    "and_activate": False,
    "allow_downgrade": False,
    "allow_reinstall": False,
    "allow_no_hwid": False,
}


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedCore]:
    """A device at ADDRESS whose core is scripted, for all verbs."""
    scripted_core = ScriptedCore(image("1.2.3"))
    for name in ("UPDATE_POLL_S", "CORE_BOOT_POLL_S"):
        monkeypatch.setattr(driver_timeouts, name, 0.0)
    with scripted(scripted_core) as transport, HostMemory(transport) as memory:
        registers = Registers(transport)
        opened = Management(transport, registers, Firmware(Mailbox(transport, registers)), memory)

        @contextmanager
        def open_core(address: str) -> Iterator[Management]:
            assert address == ADDRESS
            yield opened

        for verb in VERBS:
            monkeypatch.setattr(verb, "open_core", open_core)
            for selection in ("queried", "changed"):
                if hasattr(verb, selection):
                    monkeypatch.setattr(verb, selection, lambda *_: [DeviceInfo("NPU", ADDRESS)])
        yield scripted_core


@pytest.fixture
def run(core: ScriptedCore, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Runs a verb's body twice, for people and for programs (unless `once`); exit code, text, document."""

    def body(command: click.Command, as_json: bool, *arguments: Any, **options: Any) -> tuple[int, str]:
        function: Any = getattr(command.callback, "__wrapped__", None)
        frame = Frame(
            str(command.name) if command.name == "console" else f"fw {command.name}", as_json=as_json, timeout=None
        )
        try:
            function(frame, *arguments, **options)
        except Failure as failure:
            frame.fail(failure)
        code = int(frame.finish())
        return code, capsys.readouterr().out

    def both(command: click.Command, *arguments: Any, as_json: bool = False, **options: Any) -> Any:
        code, out = body(command, as_json, *arguments, **options)
        if not as_json:
            assert max(map(len, out.splitlines()), default=0) <= 80, out
            return code, out, {}
        name = str(command.name) if command.name == "console" else f"fw-{command.name}"
        documents = [json.loads(line) for line in out.splitlines()]
        for document in documents:
            validator(name).validate(document)
        return code, out, documents[-1] if documents else {}

    return both


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1.3.0 as a file with a short name."""
    monkeypatch.chdir(tmp_path)
    path = Path("new.bin")
    path.write_bytes(image("1.3.0"))
    return path


Run = Callable[..., tuple[int, str, dict[str, Any]]]


# --- info -----------------------------------------------------------------------------------------------------------


def test_info_of_a_confirmed_firmware(run: Run) -> None:
    code, out, _ = run(info.command, ())
    assert code == 0
    assert re.search(r"firmware +1\.2\.3, slot A, build 1a2b3c4d", out)
    assert re.search(r"^A +1\.2\.3 .* runs, confirmed", out, re.MULTILINE)
    assert re.search(r"^B .* empty", out, re.MULTILINE)
    _, _, document = run(info.command, (), as_json=True)
    (device,) = document["devices"]
    assert (device["boot_progress"], device["firmware"]["version"]) == ("firmware-ready", "1.2.3")
    assert [slot["version"] for slot in device["slots"]] == ["1.2.3", None]


@pytest.mark.parametrize(("post", "says"), [(Post.ABSENT, "no management core"), (Post.RECOVERY, "by DFU")])
def test_info_where_no_firmware_answers_is_a_report_all_the_same(
    run: Run, core: ScriptedCore, post: Post, says: str
) -> None:
    core.post = int(post)
    code, out, _ = run(info.command, ())
    assert code == 0
    assert says in out
    _, _, document = run(info.command, (), as_json=True)
    assert (document["devices"][0]["firmware"], document["devices"][0]["slots"]) == (None, None)


def test_info_of_a_trial_a_failed_slot_and_an_update(run: Run, core: ScriptedCore) -> None:
    core.slots[Slot.B] = image("1.3.0")
    core.trial, core.slot, core.on_trial = Slot.B, Slot.B, True
    assert "on trial: unless it is confirmed" in run(info.command, ())[1]
    core.trial, core.slot, core.on_trial, core.failed = Slot.NONE, Slot.A, False, Slot.B
    assert "its trial failed" in run(info.command, ())[1]
    assert "never confirmed" not in run(info.command, ())[1]
    core.override[MailboxCommand.SLOT_INFO] = lambda _: (MailboxResult.BUSY, b"")
    core.update, core.update_image = UpdateState.WRITING, bytes(5000)
    code, out, _ = run(info.command, ())
    assert code == 0
    assert "an update is at work" in out
    assert "writing: 0 of 5,000 bytes" in out


def test_info_of_an_image_that_was_never_confirmed(run: Run, core: ScriptedCore) -> None:
    core.slots[Slot.B] = image("1.3.0")
    assert re.search(r"^B +1\.3\.0 .* never confirmed$", run(info.command, ())[1], re.MULTILINE)
    _, _, document = run(info.command, (), as_json=True)
    assert [slot["proven"] for slot in document["devices"][0]["slots"]] == [True, False]
    core.proven.add(Slot.B)
    assert re.search(r"^B +1\.3\.0 .* could be booted$", run(info.command, ())[1], re.MULTILINE)
    core.proven.clear()
    core.slot, core.confirmed, core.on_trial, core.trial = Slot.B, Slot.A, True, Slot.NONE
    out = run(info.command, ())[1]
    assert re.search(r"runs, on\s+trial$", out, re.MULTILINE)
    assert "never confirmed" not in out


# --- flash ----------------------------------------------------------------------------------------------------------


def test_flash_shows_the_plan_and_carries_it_out(run: Run, core: ScriptedCore, offered: Path) -> None:
    code, out, _ = run(flash.command, offered, (), **FLASH)
    assert code == 0
    assert "1.3.0, " in out
    assert "slot B: 1.3.0 written and verified" in out
    assert core.slots[Slot.B] == offered.read_bytes()
    assert MailboxCommand.RESET not in core.asked


def test_flash_and_activate_in_one_document(run: Run, offered: Path) -> None:
    code, _, document = run(flash.command, offered, (), as_json=True, **{**FLASH, "and_activate": True})
    assert code == 0
    (device,) = document["devices"]
    assert device["plan"]["action"] == "flash"
    assert device["outcome"] == {
        "slot": "B", "written": True, "verified": True, "activated": True, "needs_reset": False, "kept_bytes": 0,
    }  # fmt: skip
    assert (device["activation"]["version"], device["activation"]["on_trial"]) == ("1.3.0", True)


def test_a_dry_run_changes_nothing(run: Run, core: ScriptedCore, offered: Path) -> None:
    code, _, document = run(flash.command, offered, (), as_json=True, **{**FLASH, "dry_run": True})
    assert (code, document["devices"][0]["outcome"]) == (0, None)
    assert MailboxCommand.UPDATE_BEGIN not in core.asked


def test_a_dry_run_of_a_refused_plan_exits_as_the_flash_would(run: Run, core: ScriptedCore, offered: Path) -> None:
    offered.write_bytes(image("1.0.0"))
    code, _, document = run(flash.command, offered, (), as_json=True, **{**FLASH, "dry_run": True})
    assert (code, [error["code"] for error in document["errors"]]) == (1, ["refused"])
    assert document["devices"][0]["plan"]["action"] == "refused"
    offered.write_bytes(image("1.2.3"))
    assert run(flash.command, offered, (), **{**FLASH, "dry_run": True})[0] == 0, "nothing to do"


def test_what_is_there_is_nothing_to_do_and_activate_tries_it(run: Run, core: ScriptedCore, offered: Path) -> None:
    run(flash.command, offered, (), **FLASH)
    code, out, _ = run(flash.command, offered, (), **FLASH)
    assert code == 0
    assert "nothing to do" in out
    code, out, _ = run(flash.command, offered, (), **{**FLASH, "and_activate": True})
    assert code == 0
    assert "1.3.0 came up from slot B" in out
    assert core.asked.count(MailboxCommand.UPDATE_BEGIN) == 1


def test_a_refused_plan_exits_1_and_names_the_option(run: Run, core: ScriptedCore, offered: Path) -> None:
    offered.write_bytes(image("1.0.0"))
    code, out, _ = run(flash.command, offered, (), **FLASH)
    assert code == 1
    assert "→ --allow-downgrade" in out
    code, _, document = run(flash.command, offered, (), as_json=True, **FLASH)
    assert [error["code"] for error in document["errors"]] == ["refused"]
    assert MailboxCommand.UPDATE_BEGIN not in core.asked
    assert run(flash.command, offered, (), **{**FLASH, "allow_downgrade": True})[0] == 0


def test_an_image_that_does_not_come_up_exits_5(run: Run, core: ScriptedCore, offered: Path) -> None:
    core.breaks_at_boot = True
    code, _, document = run(flash.command, offered, (), as_json=True, **{**FLASH, "and_activate": True})
    assert (code, [error["code"] for error in document["errors"]]) == (5, ["fell-back"])
    outcome = document["devices"][0]["outcome"]
    assert (outcome["verified"], outcome["activated"]) == (True, False)


def test_a_file_that_is_no_image_exits_5_and_is_not_sent(run: Run, core: ScriptedCore, offered: Path) -> None:
    offered.write_bytes(b"not an image")
    assert run(flash.command, offered, (), **FLASH)[0] == 5
    assert core.asked == []


def test_ctrl_c_exits_130_and_says_what_is_left(
    run: Run, core: ScriptedCore, offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupting(frame: Frame) -> Iterator[Callable[[Any], None]]:
        def report(progress: Any) -> None:
            if progress.phase == "writing" and progress.done_bytes:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(flash, "_progress_bar", interrupting)
    code, _, document = run(flash.command, offered, (), as_json=True, **FLASH)
    assert code == 130
    assert "ended in order" in document["errors"][0]["message"]
    assert core.update is UpdateState.FAILED


def test_without_a_terminal_a_change_needs_yes(run: Run, core: ScriptedCore, offered: Path) -> None:
    with open(os.devnull, encoding="utf-8") as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", nothing)
        with pytest.raises(click.UsageError, match="--yes"):
            run(flash.command, offered, (), **{**FLASH, "yes": False})
    assert MailboxCommand.UPDATE_BEGIN not in core.asked


# --- confirm and rollback -------------------------------------------------------------------------------------------


def test_confirm_keeps_what_is_on_trial_and_then_has_nothing_to_do(run: Run, core: ScriptedCore, offered: Path) -> None:
    run(flash.command, offered, (), **{**FLASH, "and_activate": True})
    code, _, document = run(confirm.command, (), True, as_json=True)
    assert (code, document["devices"][0]["changed"]) == (0, True)
    assert core.confirmed is Slot.B
    code, out, _ = run(confirm.command, (), True)
    assert code == 0
    assert "nothing to do" in out


def test_a_confirmation_that_is_not_kept_is_no_success(run: Run, core: ScriptedCore) -> None:
    core.on_trial = True
    core.override[MailboxCommand.CONFIRM] = lambda _: (0, b"")
    code, _, document = run(confirm.command, (), True, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "not-confirmed")


def test_rollback_returns_to_the_other_image(run: Run, core: ScriptedCore) -> None:
    core.slots[Slot.B] = image("1.1.0")
    core.proven.add(Slot.B)
    code, _, document = run(rollback.command, (), True, True, as_json=True)
    assert code == 0
    (device,) = document["devices"]
    assert device["withdrawn_trial"] is None
    assert (device["from_version"], device["to_version"], device["to_slot"]) == ("1.2.3", "1.1.0", "B")
    assert device["activation"]["version"] == "1.1.0"


def test_rollback_to_nothing_is_refused_without_asking(run: Run, core: ScriptedCore) -> None:
    code, _, document = run(rollback.command, (), False, False, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "no-other-image")
    assert MailboxCommand.ROLLBACK not in core.asked


@pytest.mark.parametrize("and_activate", [False, True])
def test_rollback_withdraws_a_trial_that_is_due(
    run: Run, core: ScriptedCore, offered: Path, and_activate: bool
) -> None:
    run(flash.command, offered, (), **FLASH)
    code, out, _ = run(rollback.command, (), True, and_activate)
    assert code == 0
    assert out == f"{ADDRESS}:\n  the trial of 1.3.0 in slot B is withdrawn: 1.2.3 stays\n"
    assert (core.trial, core.confirmed) == (Slot.NONE, Slot.A)
    run(flash.command, offered, (), **FLASH)
    code, _, document = run(rollback.command, (), True, and_activate, as_json=True)
    assert code == 0
    (device,) = document["devices"]
    assert device["withdrawn_trial"] == {"slot": "B", "version": "1.3.0"}
    assert (device["from_version"], device["to_version"], device["to_slot"]) == ("1.2.3", "1.2.3", "A")
    assert (device["activation"], device["slots"][1]["trial"]) == (None, False)
    assert MailboxCommand.RESET not in core.asked, "nothing waits for one"
    assert run(rollback.command, (), True, False, as_json=True)[2]["errors"][0]["code"] == "untried"


def test_withdrawing_a_trial_asks_for_that(run: Run, core: ScriptedCore, offered: Path) -> None:
    run(flash.command, offered, (), **FLASH)
    with open(os.devnull, encoding="utf-8") as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", nothing)
        with pytest.raises(click.UsageError, match=r"Withdraw the trial of 1\.3\.0 in slot B .*, so that 1\.2\.3"):
            run(rollback.command, (), False, False)
    assert MailboxCommand.ROLLBACK not in core.asked


def test_a_trial_of_a_lost_image_can_be_withdrawn(run: Run, core: ScriptedCore) -> None:
    core.trial = Slot.B
    code, _, document = run(rollback.command, (), True, False, as_json=True)
    assert (code, document["devices"][0]["withdrawn_trial"]) == (0, {"slot": "B", "version": None})


def test_a_trial_that_is_not_withdrawn_is_no_success(run: Run, core: ScriptedCore, offered: Path) -> None:
    run(flash.command, offered, (), **FLASH)
    core.override[MailboxCommand.ROLLBACK] = lambda _: (0, b"")
    code, _, document = run(rollback.command, (), True, False, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "not-withdrawn")


@pytest.mark.parametrize("mark", ["failed", None])
def test_rollback_to_an_image_that_was_never_confirmed_is_refused(
    run: Run, core: ScriptedCore, mark: str | None
) -> None:
    core.slots[Slot.B] = image("1.3.0")
    if mark:
        setattr(core, mark, Slot.B)
        core.proven.add(Slot.B)
    code, _, document = run(rollback.command, (), True, True, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "untried")
    assert "--allow-reinstall" in document["errors"][0]["remedy"]
    assert MailboxCommand.ROLLBACK not in core.asked


def test_rollback_below_the_security_counter_says_so(run: Run, core: ScriptedCore) -> None:
    core.slots[Slot.B] = image("1.1.0", security_counter=0)
    core.security_counter = 1
    code, _, document = run(rollback.command, (), True, True, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "rolled-back")


# --- log and console ------------------------------------------------------------------------------------------------


def records(*levels: int) -> list[LogRecord]:
    return [LogRecord(at, 1, 10_000_000 * at, 0, level, 0, 1, (0, 0, 0, 0)) for at, level in enumerate(levels)]


def test_the_log_is_a_line_a_record(run: Run, core: ScriptedCore, capsys: pytest.CaptureFixture[str]) -> None:
    core.log = records(0, 1, 2, 3, 1, 1, 1, 3)
    code, out, _ = run(log.command, (), (), False, "debug")
    assert (code, len(out.splitlines())) == (0, 10)
    code, out, last = run(log.command, (), (), False, "warning", as_json=True)
    assert [json.loads(line)["record"]["level"] for line in out.splitlines()] == ["warning", "error", "error"]
    assert last["record"]["problem"].startswith("written by build 00000001")


def test_an_empty_log_is_one_line_without_a_record(run: Run) -> None:
    assert "no records" in run(log.command, (), (), False, "debug")[1]
    _, out, document = run(log.command, (), (), False, "debug", as_json=True)
    assert len(out.splitlines()) == 1
    assert "record" not in document


def test_a_log_that_does_not_go_on_is_not_read_for_ever(run: Run, core: ScriptedCore) -> None:
    core.log = records(1, 1)
    one = mailbox.LOG_RECORD.build(sequence=0)
    core.override[MailboxCommand.LOG_READ] = lambda _: (0, mailbox.LOG_ANSWER.build(next=0, count=1) + one)
    code, _, document = run(log.command, (), (), False, "debug", as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "bad-answer")


def test_following_survives_a_reset_of_the_core_and_tells_gaps(
    core: ScriptedCore, capsys: pytest.CaptureFixture[str]
) -> None:
    core.log = records(*[1] * 20)
    with scripted(core) as transport:
        reader = log._Reader(Frame("fw log", as_json=False, timeout=None), Firmware(Mailbox(transport)))
        assert [record.sequence for record in reader.kept()] == list(range(20))
        core.override[MailboxCommand.LOG_READ] = lambda _: (MailboxResult.CORE_RESET, b"")
        assert list(reader.more()) == list(reader.more()) == []
        del core.override[MailboxCommand.LOG_READ]
        core.log = [record for record in records(*[1] * 30) if record.sequence >= 25]
        assert [record.sequence for record in reader.more()] == list(range(25, 30))
        core.override[MailboxCommand.LOG_READ] = lambda _: (MailboxResult.BAD_ARGUMENT, b"")
        with pytest.raises(FirmwareError):
            list(reader.more())
    noted = capsys.readouterr().err
    assert noted.count("reset before it had answered") == 1
    assert "5 records were overwritten" in noted


def test_piped_input_is_sent_and_what_comes_is_shown(
    run: Run, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    core.console = b"ready\n"
    typed = tmp_path / "typed"
    typed.write_bytes(b"help\n")
    with typed.open("rb") as source:
        monkeypatch.setattr("sys.stdin", source)
        code, _, document = run(console.command, (), False, False, 0.0, as_json=True)
    assert (code, core.typed) == (0, b"help\n")
    assert document["console"] == {"offset_bytes": 0, "lost_bytes": 0, "text": "ready\n"}


def test_a_console_that_takes_nothing_is_a_time_out(
    run: Run, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timeouts, "CONSOLE_STUCK_S", 0.0)
    core.room = 0
    typed = tmp_path / "typed"
    typed.write_bytes(b"help\n")
    with typed.open("rb") as source:
        monkeypatch.setattr("sys.stdin", source)
        code, _, document = run(console.command, (), False, False, 0.0, as_json=True)
    assert (code, document["errors"][0]["code"]) == (6, "timeout")
    assert "5 bytes were not taken" in document["errors"][0]["message"]


def test_no_console_without_a_core(run: Run, core: ScriptedCore) -> None:
    core.post = int(Post.ABSENT)
    code, _, document = run(console.command, (), True, False, 0.0, as_json=True)
    assert (code, document["errors"][0]["code"]) == (1, "core-absent")
