"""The tests of a worker that died are given to others, and no worker waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.support.overseer import FileScheduling


class Worker:
    """A worker that keeps what it is told."""

    def __init__(self, name: str, tests: Sequence[str]) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.tests = tests
        self.given: list[str] = []
        self.shutting_down = False
        self.has_died = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        """Tests to run."""
        if self.has_died:
            raise BrokenPipeError
        self.given += [self.tests[index] for index in indices]

    def shutdown(self) -> None:
        """No test will follow."""
        self.shutting_down = True


class Rig:
    """A scheduling of tests over workers that know them all."""

    def __init__(self, workers: int, *tests: str) -> None:
        self.tests = tests
        config: Any = SimpleNamespace(
            getvalue=lambda option: ["popen"] * workers if option == "tx" else None,
            option=SimpleNamespace(loadscopereorder=False, debug=False),
        )
        self.scheduling = FileScheduling(config)
        self.workers = [self.start(f"gw{number}") for number in range(workers)]

    def start(self, name: str) -> Worker:
        """A worker comes and has collected."""
        worker = self.begin(name)
        self.collect(worker)
        return worker

    def begin(self, name: str) -> Worker:
        """A worker comes."""
        worker = Worker(name, self.tests)
        self.scheduling.add_node(worker)
        return worker

    def collect(self, worker: Worker) -> None:
        """A worker knows the tests."""
        self.scheduling.add_node_collection(worker, list(self.tests))
        if self.scheduling.collection_is_completed:
            self.scheduling.schedule()

    def complete(self, worker: Worker, *tests: str) -> None:
        """A worker has run these."""
        for test in tests:
            self.scheduling.mark_test_complete(worker, self.tests.index(test))


def test_the_deadly_test_is_not_given_out_again_and_what_the_worker_had_left_is() -> None:
    rig = Rig(1, "a::1", "a::2", "a::3", "b::1", "b::2")
    (first,) = rig.workers
    rig.complete(first, "a::1")
    assert rig.scheduling.remove_node(first) == "a::2"
    assert rig.start("gw1").given == ["a::3", "b::1", "b::2"]


def test_finished_files_of_a_dead_worker_are_not_given_out() -> None:
    rig = Rig(1, "a::1", "b::1", "b::2", "b::3", "c::1", "d::1", "d::2")
    (first,) = rig.workers
    rig.complete(first, "a::1", "b::1", "b::2", "b::3")
    assert rig.scheduling.remove_node(first) == "c::1"
    newcomer = rig.start("gw1")
    assert newcomer.given == ["d::1", "d::2"]
    assert newcomer.shutting_down


def test_a_worker_knows_a_next_test_while_there_are_more() -> None:
    """It begins a test when it knows whether another follows."""
    rig = Rig(1, *(f"{file}::1" for file in "abcdef"))
    (first,) = rig.workers
    assert len(first.given) >= 2
    rig.scheduling.remove_node(first)
    newcomer = rig.start("gw1")
    for test in newcomer.given:
        rig.complete(newcomer, test)
        assert newcomer.shutting_down or newcomer.given[-1] != test
    assert sorted(newcomer.given) == ["b::1", "c::1", "d::1", "e::1", "f::1"]


def test_a_worker_that_died_of_no_test_leaves_its_tests_whole() -> None:
    rig = Rig(1, "a::1")
    (first,) = rig.workers
    rig.complete(first, "a::1")
    assert rig.scheduling.remove_node(first) is None
    assert rig.scheduling.tests_finished


def test_what_a_worker_was_given_after_its_death_goes_to_others() -> None:
    """Two die at once: the second is given what the first left before its death is known."""
    rig = Rig(2, *(f"{file}::{number}" for file in "ab" for number in range(3)))
    first, second = rig.workers
    rig.complete(second, "b::0")
    second.has_died, second.shutting_down = True, False
    rig.scheduling.remove_node(first)
    assert rig.scheduling.remove_node(second) == "b::1"
    assert sorted(rig.start("gw2").given) == ["a::1", "a::2", "b::2"]


def test_a_worker_that_does_not_know_its_tests_yet_is_given_none() -> None:
    """Two die at once, and one of those that take their place is ready before the other."""
    rig = Rig(2, *(f"{file}::{number}" for file in "abc" for number in range(3)))
    first, second = rig.workers
    early, late = rig.begin("gw2"), rig.begin("gw3")
    assert rig.scheduling.remove_node(first) == "a::0"
    assert rig.scheduling.remove_node(second) == "b::0"
    rig.collect(early)
    assert late.given == []
    assert not late.shutting_down
    rig.collect(late)
    assert sorted(early.given + late.given) == ["a::1", "a::2", "b::1", "b::2", "c::0", "c::1", "c::2"]
