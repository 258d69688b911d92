"""The device that all cases of a test worker share, and what is said and written of them at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from driver_shim.shared import import_guard
from sdk import Device
from sdk.validate import barred
from tests.conformance import table
from tests.conformance.cases import SuiteBackend, all_cases
from tests.conformance.excluded import Reason
from tests.conformance.table import Outcome, Result
from tests.support.rigs import Rig, in_process_rig

PROPERTY = "conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the cases run, and whether what became of them is written down."""
    group = parser.getgroup("conformance")
    group.addoption("--on", choices=("emulator", "in-process"), default="emulator", help="what runs the cases")
    group.addoption("--kernels", choices=("numpy", "golden"), default="numpy", help="on which kernels")
    group.addoption("--write", action="store_true", help="write refused.txt and docs/conformance.md")


@pytest.fixture(scope="session")
def suite_device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One device for all cases of this process, from which onnxruntime is barred, as from the device's."""
    import_guard.install()
    os.environ["ONNX_MODELS"] = str(tmp_path_factory.mktemp("models"))  # the suite writes its real models' inputs
    kernels = request.config.getoption("--kernels")
    if request.config.getoption("--on") == "in-process":
        rig: AbstractContextManager[Rig] = in_process_rig(kernels)
        with rig as made, made.device() as device:
            yield from _in_use(device)
    else:
        with Device(f"emulator:?kernels={kernels}&core=none") as device:
            yield from _in_use(device)


def _in_use(device: Device) -> Iterator[Device]:
    SuiteBackend.opened = device
    yield device
    _, holding = barred.holders(os.getpid())
    assert not holding, f"processes {holding} have onnxruntime loaded"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A case is found (-k) by any operator in it."""
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        if case:
            item.extra_keyword_matches.update(case.operators)


class Summary:
    """Collects what became of the cases, in the process that gives them out."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: list[Result] = []
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A case ended."""
        if report.when == "call":
            properties: list[tuple[str, Any]] = report.user_properties
            self._results += [decode(value) for name, value in properties if name == PROPERTY]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is to be written; a page that says otherwise than this run fails it."""
        if self._config.getoption("--write"):
            self._notes += [f"off refused.txt: {case}" for case in table.remove_refusals(self._results)]
        if len(self._results) != len(all_cases()):
            return
        text = table.page(self._results)
        if self._config.getoption("--write"):
            table.PAGE.write_text(text, "utf-8")
        elif not table.PAGE.exists() or table.PAGE.read_text("utf-8") != text:
            self._notes.append(f"{table.PAGE.name} is out of date: make conformance WRITE=1")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The counts, and the operators that lack something."""
        if self._results:
            terminalreporter.section("conformance")
            lines = [*table.lacking(self._results), *table.summary(self._results), *self._notes]
            terminalreporter.write_line("\n".join(lines))


def pytest_configure(config: pytest.Config) -> None:
    """Count in the process that gives out the cases, which is no worker."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(config), "conformance")


def encode(result: Result) -> list[str]:
    """As a report's property, which travels between processes as JSON."""
    return [str(field or "") for field in result]


def decode(value: list[str]) -> Result:
    """See `encode`."""
    case, operator, outcome, reason = value
    return Result(case, operator, Outcome(outcome), Reason(reason) if reason else None)
