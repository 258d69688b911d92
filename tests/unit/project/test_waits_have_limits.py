"""No test waits for ever for another thread, process or pipe: what could is called with a time-out."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
STREAMS = {"stdout", "stderr"}
READS = {"read", "readline", "readlines"}
PROCESS_STARTERS = {"run", "call", "check_call", "check_output"}
PROCESS_NAMES = ("process", "popen", "qemu", "shell", "emulator", "server", "owner", "child", "_started")

Rule = Callable[[ast.Call], bool]


def name_of(expression: ast.expr) -> str:
    """The last name of what a method is called on; empty for a call's result."""
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""


def called_on(call: ast.Call) -> str:
    """Whose method is called."""
    return name_of(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def method(call: ast.Call) -> str:
    """The method's name."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def names(call: ast.Call) -> set[str | None]:
    """Keywords of a call; None stands for "**"."""
    return {keyword.arg for keyword in call.keywords}


def has_no_arguments(call: ast.Call) -> bool:
    """Neither a time-out nor anything else."""
    return not call.args and not call.keywords


RULES: dict[str, Rule] = {
    "subprocess without timeout=": lambda call: (
        called_on(call) == "subprocess" and method(call) in PROCESS_STARTERS and not names(call) & {"timeout", None}
    ),
    "communicate without timeout=": lambda call: (
        method(call) == "communicate" and not names(call) & {"timeout", None} and len(call.args) < 2
    ),
    "a process's wait without a time-out": lambda call: (
        method(call) == "wait" and has_no_arguments(call) and called_on(call).endswith(PROCESS_NAMES)
    ),
    "join without a time-out": lambda call: method(call) == "join" and has_no_arguments(call),
    "a queue's get without a time-out": lambda call: method(call) == "get" and has_no_arguments(call),
    "acquire without a time-out": lambda call: method(call) == "acquire" and has_no_arguments(call),
    "select without a time-out": lambda call: (
        called_on(call) == "select" and method(call) == "select" and len(call.args) < 4
    ),
    "waitpid, which may block": lambda call: (
        method(call) == "waitpid" and isinstance(call.args[1], ast.Constant) and call.args[1].value == 0
    ),
    "a read of a process's stream": lambda call: called_on(call) in STREAMS and method(call) in READS,
}


def lines_of_streams(tree: ast.AST) -> Iterator[int]:
    """Lines with loops over a process's stream."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)) and name_of(node.iter) in STREAMS:
            yield node.iter.lineno


def violations(source: str) -> list[str]:
    """What may wait for ever, as "line: rule"."""
    tree = ast.parse(source)
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = [(call.lineno, rule) for call in calls for rule, breaks in RULES.items() if breaks(call)]
    found += [(line, "a loop over a process's stream") for line in lines_of_streams(tree)]
    return [f"{line}: {rule}" for line, rule in sorted(found)]


def test_nothing_in_the_tests_waits_for_ever() -> None:
    found = {
        str(path.relative_to(TESTS)): broken
        for path in sorted(TESTS.rglob("*.py"))
        if (broken := violations(path.read_text("utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "waits",
    [
        "subprocess.run(command, check=True)",
        "process.communicate()",
        "self.process.wait()",
        "thread.join()",
        "results.get()",
        "lock.acquire()",
        "select.select([fd], [], [])",
        "os.waitpid(pid, 0)",
        "process.stdout.readline()",
        "[line for line in process.stdout]",
    ],
)
def test_what_may_wait_for_ever_is_found(waits: str) -> None:
    assert len(violations(waits)) == 1


@pytest.mark.parametrize(
    "ends",
    [
        "subprocess.run(command, check=True, timeout=1)",
        "subprocess.run(command, **options)",
        "process.communicate(timeout=1)",
        "process.wait(1)",
        "queue.nop().wait()",
        "thread.join(1)",
        "' '.join(words)",
        "results.get(timeout=1)",
        "select.select([fd], [], [], 1)",
        "os.waitpid(pid, os.WNOHANG)",
    ],
)
def test_what_ends_is_left_alone(ends: str) -> None:
    assert violations(ends) == []
