"""Tables of cases that tests must reach, and that must hold everything that tests see."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

import pytest

Key = TypeVar("Key", bound=Hashable)


class CaseTable(Generic[Key]):
    """Cases by key; tests report the ones they reached, the last test of the module asks for the rest."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = frozenset(keys)
        self._reached: set[Key] = set()

    def reach(self, key: Key) -> None:
        """A test has seen this case; fails at once for one that the table lacks."""
        if key not in self.keys:
            pytest.fail(f"{key} happened, but the table does not have it")
        self._reached.add(key)

    def check_all_reached(self, request: pytest.FixtureRequest) -> None:
        """Fail for cases that no test reached; skip when the module was not run whole."""
        whole = request.session.testscollected and _ran_whole(request)
        if not whole:
            pytest.skip("only meaningful after all tests of its module")
        missing = sorted(str(key) for key in self.keys - self._reached)
        assert not missing, f"no test reached {len(missing)} of {len(self.keys)} cases: {missing[:20]}"


def _ran_whole(request: pytest.FixtureRequest) -> bool:
    """Whether nothing was selected inside the module on the command line."""
    config = request.config
    return not config.option.keyword and not any("::" in argument for argument in config.args)
