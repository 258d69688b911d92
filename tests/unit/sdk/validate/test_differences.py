"""What is known to differ from onnxruntime is named, is on the page about it, and are operators that compile."""

from __future__ import annotations

import re

from sdk.compiler.lowering import LOWERINGS
from sdk.validate import differences
from tests.support.paths import ROOT


def test_a_model_is_told_the_lines_of_its_operators_once_each() -> None:
    lines = differences.known(["Pow", "Relu", "Cast", "Pow"])
    assert [line.split(":")[0] for line in lines] == ["Cast", "Pow"]


def test_a_model_without_such_operators_is_told_nothing() -> None:
    assert differences.known(["Relu", "Conv"]) == ()


def test_every_operator_named_compiles_and_is_on_the_page() -> None:
    page = (ROOT / differences.PAGE).read_text()
    for op in differences.BY_OPERATOR:
        assert op in LOWERINGS
        family = {"CastLike": "Cast", "ScatterElements": "Scatter", "ScatterND": "Scatter"}.get(op, op)
        assert re.search(rf"\b{family}\b", page), op
