"""docs/architecture.md names files, classes and functions that exist, and its walks are short."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import DOCS, ROOT

PAGE = (DOCS / "architecture.md").read_text("utf-8")
WALKS = [re.findall(r"^\| \d+ \| `([^`]+)` \| `([\w.]+)` \|", part, re.MULTILINE) for part in PAGE.split("## ")]
STEPS = [step for walk in WALKS for step in walk]
FILES = sorted(set(re.findall(r"`((?:sdk|driver_shim|emulator|firmware_tools|tests|docs)/[\w/.]*)`", PAGE)))


def names_of(path: str) -> set[str]:
    """Every "function" and "Class.method" that a file defines at its top."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        names |= {f"{owner.name}.{node.name}" for node in owner.body if isinstance(node, ast.FunctionDef)}
    return names


def test_there_is_a_walk_of_a_descriptor_and_one_of_a_model_of_a_dozen_steps_each() -> None:
    assert [len(walk) for walk in WALKS if walk] == [12, 10]


@pytest.mark.parametrize(("path", "name"), STEPS)
def test_every_function_of_the_walks_exists(path: str, name: str) -> None:
    assert name in names_of(path)


def test_every_file_it_names_exists() -> None:
    assert len(FILES) > 20
    assert not [name for name in FILES if not (ROOT / name).exists()]


def test_every_method_it_names_in_passing_exists() -> None:
    everywhere = {
        name
        for package in ("sdk", "driver_shim", "emulator", "firmware_tools")
        for path in (ROOT / package).rglob("*.py")
        for name in names_of(str(path.relative_to(ROOT)))
    }
    named = set(re.findall(r"`([A-Z]\w+\.\w+)`", PAGE))
    assert named and not named - everywhere
