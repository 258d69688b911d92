"""docs/models.md lists the models that the tests run, each in the version that is pinned."""

from __future__ import annotations

import re

from tests.models import packages, zoo
from tests.support.paths import DOCS

ROW = re.compile(r"^\| ([\w-]+) \| ([\w.]+) \| `([^`]+)` \|", re.MULTILINE)


def test_the_page_lists_what_the_tests_run() -> None:
    listed = ROW.findall((DOCS / "models.md").read_text("utf-8"))
    assert listed == [(entry.package, entry.version, entry.short_file) for entry in zoo.ZOO]


def test_every_package_that_is_brought_has_a_model_in_the_table() -> None:
    assert set(packages.versions()) == {entry.package for entry in zoo.ZOO} - {zoo.MAGIKA}


def test_names_are_unique_enough_to_find_a_model_by() -> None:
    files = [(entry.package, entry.file) for entry in zoo.ZOO]
    assert len(set(files)) == len(files)
