"""The core of the contract suite is the same on every transport, and every exception to it is one of the list's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.contract.core import NOT_CORE, Row
from tests.support.paths import ROOT
from tests.support.rigs import CARD_VARIABLE

COLLECT_S = 120
_TRANSPORT = re.compile(r"(?<=[\[-])(in-process|vfio-user|vfio)(?=[]-])")


def collected(card: str | None) -> dict[str, set[str]]:
    """Transport → the contract tests that run over it, with the transport's name taken out of theirs."""
    environment = {name: value for name, value in os.environ.items() if name != CARD_VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT), **({CARD_VARIABLE: card} if card else {})}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        "tests/contract",
    ]
    listed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=COLLECT_S, check=True
    )
    found = defaultdict(set)
    for line in listed.stdout.splitlines():
        named = _TRANSPORT.search(line)
        if "::" in line and named:
            found[named[1]].add(_TRANSPORT.sub("*", line, count=1))
    return found


@pytest.fixture(scope="module")
def lists() -> dict[str, set[str]]:
    return collected(None) | collected("0000:00:00.0")


def test_in_process_and_over_vfio_user_the_suite_is_the_same(lists: dict[str, set[str]]) -> None:
    assert lists["in-process"] == lists["vfio-user"]
    assert len(lists["vfio"]) > 500


def test_on_a_card_it_lacks_what_the_list_names_and_nothing_else(lists: dict[str, set[str]]) -> None:
    assert lists["vfio"] <= lists["in-process"]
    for left_out in lists["in-process"] - lists["vfio"]:
        module, name = re.fullmatch(r"tests/contract/(\w+)\.py::(.*)", left_out, re.DOTALL).groups()  # type: ignore[union-attr]
        assert any(
            row.module == module and row.test in ("", name.partition("[")[0]) and row.parameters in name
            for row in NOT_CORE
        ), f"{left_out} is left out without a reason"


@pytest.mark.parametrize("row", NOT_CORE, ids=lambda row: f"{row.module}-{row.test}-{row.parameters}")
def test_every_row_names_tests_that_there_are(lists: dict[str, set[str]], row: Row) -> None:
    path = f"tests/contract/{row.module}.py::{row.test}"
    assert row.reason
    assert any(test.startswith(path) and row.parameters in test for test in lists["in-process"])
