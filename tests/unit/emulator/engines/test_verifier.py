"""Verification as both kinds of verifier do it, and a worker that dies or hangs over a container."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator

import pytest

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import build
from emulator.engines.verdict import InlineVerifier, Verdict, Verifier
from emulator.engines.verifier import VerifierProcess
from emulator.model.profile import load_profile
from tests.support.children import ends
from tests.support.engine_jobs import PATIENCE_S
from tests.support.programs import add_twice
from tests.support.toy_verifier import FACTS

PROFILE = load_profile("generic")
TOY = "tests.support.toy_verifier"
SHORT_S = 0.2


@pytest.fixture(params=["inline", "process"])
def verifier(request: pytest.FixtureRequest) -> Iterator[Verifier]:
    verifier: Verifier = InlineVerifier(PROFILE) if request.param == "inline" else VerifierProcess(PROFILE)
    yield verifier
    verifier.close()


@pytest.fixture
def toy() -> Iterator[VerifierProcess]:
    verifier = VerifierProcess(PROFILE, TOY, PATIENCE_S)
    yield verifier
    verifier.close()


def collect(verifier: Verifier) -> Verdict:
    """Wait for a verdict the way the device does: by descriptors and the deadline."""
    until = time.monotonic() + PATIENCE_S
    while True:
        verdicts = verifier.poll()
        if verdicts:
            (verdict,) = verdicts
            return verdict
        deadline = verifier.next_deadline_ns()
        assert deadline is not None and time.monotonic() < until
        select.select(verifier.fds(), [], [], max(0.0, deadline / 1e9 - time.monotonic()))


def test_a_program_that_is_accepted_comes_with_its_facts(verifier: Verifier) -> None:
    verifier.start(3, build(add_twice()))
    verdict = collect(verifier)
    assert (verdict.number, verdict.status, verdict.message) == (3, Status.SUCCESS, "")
    assert verdict.facts is not None
    assert verdict.facts.constants == (16,)
    (entry,) = verdict.facts.entries
    assert entry[:6] == (128, (16,), (), ((128, 16),), 192, 2)
    assert entry.ticks > PROFILE.exec_fixed_ticks
    assert verifier.fds() == [] and verifier.next_deadline_ns() is None


def test_a_program_that_is_refused_comes_with_the_reason(verifier: Verifier) -> None:
    for number, image in ((1, b"no container"), (2, build(add_twice())[:-1])):
        verifier.start(number, image)
        verdict = collect(verifier)
        assert (verdict.number, verdict.status, verdict.facts) == (number, Status.PROGRAM_REJECTED, None)
        assert verdict.message.startswith("program rejected: ")


def test_what_is_cancelled_yields_nothing_and_the_next_one_does(verifier: Verifier) -> None:
    verifier.start(1, build(add_twice()))
    verifier.cancel_all()
    verifier.start(2, b"no container")
    assert collect(verifier).number == 2


def test_closing_twice_is_fine_and_leaves_no_process(toy: VerifierProcess) -> None:
    toy.start(1, b"fine")
    worker = toy.pid
    assert worker is not None
    toy.close()
    toy.close()
    assert not os.path.exists(f"/proc/{worker}")


def test_facts_arrive_as_they_were_sent_with_the_profile_of_the_device(toy: VerifierProcess) -> None:
    toy.start(5, b"fine")
    assert collect(toy) == Verdict(5, Status.SUCCESS, PROFILE.name, FACTS)


def test_a_worker_that_dies_over_a_container_is_replaced(toy: VerifierProcess) -> None:
    for number in (1, 3):
        toy.start(number, b"die")
        verdict = collect(toy)
        assert (verdict.number, verdict.status, verdict.facts) == (number, Status.ENGINE_LOST, None)
        assert "died" in verdict.message
        toy.start(number + 1, b"fine")
        assert collect(toy).status is Status.SUCCESS


def test_an_idle_worker_that_was_killed_is_replaced(toy: VerifierProcess) -> None:
    toy.start(1, b"fine")
    collect(toy)
    worker = toy.pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    assert ends(worker)
    toy.start(2, b"fine")
    assert collect(toy) == Verdict(2, Status.SUCCESS, PROFILE.name, FACTS)


def test_a_worker_that_takes_too_long_is_replaced_and_its_container_refused() -> None:
    toy = VerifierProcess(PROFILE, TOY, SHORT_S)
    try:
        toy.start(1, b"hang")
        worker = toy.pid
        verdict = collect(toy)
        assert (verdict.status, verdict.facts) == (Status.PROGRAM_REJECTED, None)
        assert "not verified within" in verdict.message
        assert worker is not None and ends(worker)
    finally:
        toy.close()


def test_a_container_that_nobody_wants_any_more_does_not_hold_up_the_next(toy: VerifierProcess) -> None:
    toy.start(1, b"hang")
    worker = toy.pid
    toy.cancel_all()
    toy.start(2, b"fine")
    assert collect(toy).number == 2
    assert worker is not None and ends(worker)
