"""docs/operators.md is what the compiler says of itself."""

from __future__ import annotations

from pathlib import Path

import onnx

from sdk.compiler.compile import HANDLED
from sdk.compiler.operators_page import CODES, render
from sdk.compiler.problems import Reason
from tests.support.paths import DOCS

PAGE = Path(DOCS) / "operators.md"


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text("utf-8") == render(), "run: python -m sdk.compiler.operators_page > docs/operators.md"


def test_every_reason_is_explained() -> None:
    assert set(CODES) == set(Reason)


def test_every_operator_that_runs_is_listed_as_one_that_does() -> None:
    rows = [line.split(" | ") for line in render().splitlines() if line.startswith("| ")]
    runs = {row[0].removeprefix("| ") for row in rows if len(row) > 2 and row[2] in ("commands", "while compiling")}
    newest = onnx.defs.onnx_opset_version()
    assert {op for op in HANDLED if onnx.defs.has(op, newest, "")} <= runs


def test_limits_come_from_the_lowerings() -> None:
    page = render()
    (row,) = [line for line in page.splitlines() if line.startswith("| Dropout |")]
    assert "it is in training mode" in row
    (row,) = [line for line in page.splitlines() if line.startswith("| Reshape |")]
    assert "its shape must be constant" in row
