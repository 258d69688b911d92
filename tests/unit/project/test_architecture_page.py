"""The walk in docs/architecture.md names functions that exist, and no more than a dozen of them."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STEPS = re.findall(r"^\| \d+ \| `([^`]+)` \| `(\w+)\.(\w+)` \|", PAGE, re.MULTILINE)


def test_the_walk_has_at_most_a_dozen_steps() -> None:
    assert 8 <= len(STEPS) <= 12


@pytest.mark.parametrize(("path", "owner", "name"), STEPS)
def test_every_function_of_the_walk_exists(path: str, owner: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    owners = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    assert owners, f"{path} has no class {owner}"
    methods = {node.name for node in owners[0].body if isinstance(node, ast.FunctionDef)}
    assert name in methods, f"{path}: {owner} has no method {name}"


def test_every_file_it_names_exists() -> None:
    named = set(re.findall(r"`((?:sdk|driver_shim|emulator|tests)/[\w/.]*)`", PAGE))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing
