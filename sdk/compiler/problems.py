"""What is wrong with a model, as data: where, why, and by which code."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.errors import ModelProblem, UnsupportedModel

MAX_REPORTED = 20
"""Problems listed in one message."""


class Reason(enum.StrEnum):
    """Why a node does not run on the device. The values are stable: reports and errors carry them."""

    MALFORMED = "malformed"
    """The model itself is wrong; it runs nowhere."""
    INTERFACE = "unsupported-interface"
    """An input or output is no tensor; it cannot be given to any engine."""
    OPSET = "unsupported-opset"
    OPERATOR = "unsupported-operator"
    """The device has no command for it."""
    DOMAIN = "unsupported-domain"
    """An operator of somebody else's, which this project does not know."""
    TYPE = "unsupported-type"
    """It reads or gives elements of a type that the device does not have."""
    FORM = "unsupported-form"
    """The device has the operator, but not with these attributes, operands or shapes."""
    DATA = "data-dependent-shape"
    """How many elements it gives depends on what it reads."""
    BETWEEN = "between-host-nodes"
    """The device could run it, but what it reads and gives is on the host."""

    @property
    def is_fatal(self) -> bool:
        """Whether the model cannot run on the host either."""
        return self in (Reason.MALFORMED, Reason.INTERFACE, Reason.OPSET)


class Subject(NamedTuple):
    """What a problem is about: a node, an initialiser, or the model as a whole."""

    noun: str = ""
    """ "node" or "initialiser"; empty for the model."""
    position: int = 0
    """Place among those of its kind, from 1."""
    name: str = ""
    output: str = ""
    """A node's first output."""
    op: str | None = None

    @property
    def node(self) -> str | None:
        """A node's name for programs."""
        return None if self.op is None else self.name or self.output

    def found_by(self, noun: str = "") -> str:
        """How people find it: by its name, else by its place and output."""
        if self.name:
            return f"{noun} {self.name!r}".lstrip()
        place = f"the {ordinal(self.position)} {noun}".rstrip()
        return f"{place}, output {self.output!r}" if self.output else place

    def says(self, reason: str, count: int = 1) -> str:
        """A reason against this one, or against `count` of its kind of which it is the first."""
        if not self.noun:
            return reason
        who = self.found_by(self.noun) if count == 1 else f"{count} {self.noun}s, first {self.found_by()}"
        return f"{who}: {reason}" if self.op is None else f"{self.op} ({who}): {reason}"


MODEL = Subject()


class Problem(NamedTuple):
    """One reason why a model cannot run on the device."""

    reason: str
    subject: Subject = MODEL
    code: Reason = Reason.MALFORMED

    def record(self) -> ModelProblem:
        """For the error's data."""
        if self.subject.op is None:
            return ModelProblem(self.subject.says(self.reason), code=self.code.value)
        return ModelProblem(self.reason, self.subject.node, self.subject.op, self.code.value)


def unsupported(problems: Sequence[Problem]) -> UnsupportedModel:
    """The error that lists these problems, those of one kind and reason in one line."""
    kinds: dict[tuple[str, str | None, str], list[Subject]] = {}
    for problem in problems:
        subject = problem.subject
        kinds.setdefault((subject.noun, subject.op, problem.reason), []).append(subject)
    lines = [same[0].says(reason, len(same)) for (_, _, reason), same in kinds.items()]
    if len(lines) > MAX_REPORTED:
        lines[MAX_REPORTED:] = [f"and {len(lines) - MAX_REPORTED} more"]
    first = next((problem.subject for problem in problems if problem.subject.op is not None), MODEL)
    return UnsupportedModel(
        "\n  ".join(["the model cannot run on the device:", *lines]),
        node=first.node,
        op=first.op,
        problems=tuple(problem.record() for problem in problems),
        subsystem="compiler",
    )


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    teens = number // 10 % 10 == 1
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
