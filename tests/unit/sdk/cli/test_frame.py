"""What a verb reports: the envelope, the errors, and the exit code of good and bad devices together."""

from __future__ import annotations

import json
import re

import pytest

from driver_shim.errors import DeviceLost, DeviceNotFound
from sdk.cli.frame import Frame
from sdk.version import VERSION


def frame(as_json: bool = True) -> Frame:
    return Frame("info", as_json=as_json, timeout=None)


def test_the_envelope_has_its_six_keys_and_a_utc_time(capsys: pytest.CaptureFixture[str]) -> None:
    report = frame()
    report.add({"address": "emulator"})
    assert report.finish() == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "schema_version", "tool_version", "time", "devices", "errors"]
    assert (document["schema"], document["schema_version"], document["tool_version"]) == ("npuctl.info", 1, VERSION)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["time"])
    assert document["devices"] == [{"address": "emulator"}]


def test_text_for_people_stays_off_stdout_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = frame()
    report.say("hello")
    report.note("look here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "npuctl: look here\n"


def test_an_error_carries_device_code_message_remedy_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    report = frame()
    report.fail(DeviceLost("it went away", device="vfio-user:/a", remedy="open it again"))
    assert report.finish() == 8
    assert report.errors == [
        {
            "device": "vfio-user:/a",
            "code": "device-lost",
            "message": "it went away",
            "remedy": "open it again",
            "exit_code": 8,
            "holder": None,
        }
    ]
    assert capsys.readouterr().err == "npuctl: vfio-user:/a: it went away (open it again)\n"


def test_good_and_bad_devices_together_are_mixed() -> None:
    report = frame()
    report.add({"address": "vfio-user:/good"})
    report.fail(DeviceLost("gone", device="vfio-user:/bad"))
    assert report.exit_code() == 7


def test_a_reported_device_that_failed_validation_is_not_mixed() -> None:
    report = frame()
    report.add({"address": "vfio-user:/a"})
    report.fail(DeviceLost("gone"), "vfio-user:/a")
    assert report.exit_code() == 8


def test_the_first_error_decides_when_no_device_was_good() -> None:
    report = frame()
    report.fail(DeviceNotFound("none"), "a")
    report.fail(DeviceLost("gone"), "b")
    assert report.exit_code() == 3


def test_numbers_that_json_cannot_hold_are_a_programming_error() -> None:
    report = frame()
    report.add({"address": "a", "value": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        report.finish()
