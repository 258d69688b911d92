"""What the packages import is installed with them, or by an extra that is known here and in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = ("npuctl", "sdk", "driver_shim", "emulator", "firmware_tools")
ALWAYS = {
    "click": "click",
    "construct": "construct",
    "google": "onnx",  # protobuf comes with it
    "ml_dtypes": "ml_dtypes",
    "numpy": "numpy",
    "onnx": "onnx",
    "rich": "rich",
}
"""Module → distribution, of what every installation has."""
EXTRAS = {
    "cryptography": ("cryptography", "firmware"),
    "jinja2": ("jinja2", "chat"),
    "libusb_package": ("libusb-package", "usb"),
    "magika": ("magika", "demo"),
    "onnxruntime": ("onnxruntime", "models"),
    "peakrdl_html": ("peakrdl-html", "firmware"),
    "systemrdl": ("systemrdl-compiler", "firmware"),
    "tokenizers": ("tokenizers", "chat"),
    "torch": ("torch", "torch"),
    "unicorn": ("unicorn", "firmware"),
    "usb": ("pyusb", "usb"),
}
"""Module → distribution and the extra that brings it. tests/slow/test_wheel.py sees what is said without it."""


def imported() -> set[str]:
    """Top-level modules of others that the packages import, wherever they do."""
    found: set[str] = set()
    for path in [ROOT / "npuctl.py", *(path for package in OURS[1:] for path in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(OURS) - sys.stdlib_module_names


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}


def test_every_import_is_known() -> None:
    assert imported() <= set(ALWAYS) | set(EXTRAS)


def test_no_extra_is_known_that_nothing_needs() -> None:
    assert set(EXTRAS) <= imported()


def test_what_every_installation_needs_is_required() -> None:
    assert distributions(PROJECT["dependencies"]) == set(ALWAYS.values())


@pytest.mark.parametrize("module", EXTRAS)
def test_the_extra_brings_what_it_is_named_for(module: str) -> None:
    distribution, extra = EXTRAS[module]
    assert distribution in distributions(PROJECT["optional-dependencies"][extra])
