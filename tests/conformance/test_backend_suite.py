"""ONNX's own backend suite: every case that counts passes or is a known refusal, and none is wrong."""

from __future__ import annotations

import re
import unittest

import pytest

from sdk import CommandFailed, Device, UnsupportedModel
from tests.conformance import excluded
from tests.conformance.cases import DEVICE, Case, SuiteBackend, all_cases
from tests.conformance.conftest import PROPERTY, encode
from tests.conformance.excluded import Reason
from tests.conformance.table import Outcome, Result, listed_refusals

LISTED = listed_refusals()


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_case(case: Case, suite_device: Device, request: pytest.FixtureRequest) -> None:
    reason = excluded.reason_of(case)
    outcome = Outcome.WRONG
    try:
        refusal = _refusal(case, reason)
        outcome = Outcome.EXCLUDED if reason else Outcome.REFUSED if refusal else Outcome.PASSED
    finally:
        result = Result(case.id, case.operator, outcome, reason)
        request.node.user_properties.append((PROPERTY, encode(result)))
    if outcome is Outcome.REFUSED and case.id not in LISTED:
        pytest.fail(f"refused, and not listed in refused.txt: {refusal}", pytrace=False)
    if outcome is Outcome.PASSED and case.id in LISTED and not request.config.getoption("--write"):
        pytest.fail("passes: take it off refused.txt (--write does)", pytrace=False)


def _refusal(case: Case, reason: Reason | None) -> Exception | None:
    """Run the case; what the device refused it with. Anything else that goes wrong is raised."""
    try:
        case.run()
    except UnsupportedModel as error:
        return error
    except unittest.SkipTest:  # the suite asked whether the model is compatible
        with pytest.raises(UnsupportedModel) as caught:
            SuiteBackend.prepare(case.model, DEVICE)
        return caught.value
    except CommandFailed as error:
        if reason is Reason.TYPES and error.code == "value-out-of-range":
            return error
        raise
    except AssertionError as error:
        if reason is Reason.RANDOM:
            return error
        raise
    return None


def test_what_is_excluded_is_printed_with_its_size_and_is_less_than_a_quarter() -> None:
    sizes = dict.fromkeys(Reason, 0)
    for case in all_cases():
        if reason := excluded.reason_of(case):
            sizes[reason] += 1
    print("excluded:", ", ".join(f"{size} {reason}" for reason, size in sizes.items()))
    assert 0 < sum(sizes.values()) < len(all_cases()) / 4


def test_every_rule_excludes_something() -> None:
    operators = {operator for case in all_cases() for operator in case.operators}
    assert operators >= excluded.OPERATORS.keys()
    for pattern in excluded.PATTERNS:
        assert any(re.search(pattern, case.id) for case in all_cases()), pattern


def test_what_is_listed_as_refused_exists_and_counts(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write"):
        pytest.skip("the list is being written: run again without --write")
    cases = {case.id: case for case in all_cases()}
    assert cases.keys() >= LISTED
    assert [name for name in sorted(LISTED) if excluded.reason_of(cases[name])] == []


def test_cases_have_names_of_their_own() -> None:
    assert len({case.id for case in all_cases()}) == len(all_cases())
