"""Which package may import which: read from the source, so that a lazy import counts as much as one at the top."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

OURS = ("driver_shim", "emulator", "sdk", "firmware_tools", "tests", "benchmarks", "examples")

ALLOWED: dict[str, tuple[str, ...]] = {
    "driver_shim.protocol": ("driver_shim.protocol",),
    "driver_shim": ("driver_shim",),
    "driver_shim.shared": ("driver_shim.shared", "driver_shim.protocol"),
    "emulator.model": ("emulator.model", "driver_shim.protocol"),
    "emulator": ("emulator", "driver_shim.protocol", "driver_shim.shared"),
    "firmware_tools": ("firmware_tools", "driver_shim"),
    "sdk.cli": ("sdk", "driver_shim", "emulator.model", "firmware_tools"),
    "sdk": ("sdk", "driver_shim", "emulator.model"),
}
"""Package → the packages of ours that it may import. The longest package that holds a module rules it."""


COMPOSITION_ROOT = "sdk.opening.addresses"
"""The only module of the SDK that names concrete transports; the others know the interface."""
TRANSPORTS = "driver_shim.transport"
WAYS_TO_SPEAK_OF_THEM = (f"{TRANSPORTS}.base", f"{TRANSPORTS}.usb_ports")
"""The interface, and which USB ports there are."""


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def ruling_package(module: str) -> str:
    return max((package for package in ALLOWED if within(module, package)), key=len)


def imported_modules(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything that the source imports, with `from a import b` counted as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([base] if base else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of ours in `source` that the rule forbids to `module`."""
    allowed = ALLOWED[ruling_package(module)]
    concrete = module != COMPOSITION_ROOT and within(module, "sdk")
    ours = (name for name in imported_modules(source, module, is_package) if name.partition(".")[0] in OURS)
    return sorted(
        f"{module} imports {name}; it may import only {', '.join(allowed)}"
        for name in ours
        if not any(within(name, package) for package in allowed)
        or (concrete and within(name, TRANSPORTS) and not any(within(name, way) for way in WAYS_TO_SPEAK_OF_THEM))
    )


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ("driver_shim", "emulator", "sdk", "firmware_tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_no_module_breaks_the_dependency_rule() -> None:
    broken = [
        line
        for module, path in modules()
        for line in violations(path.read_text("utf-8"), module, path.name == "__init__.py")
    ]
    assert not broken, "\n".join(broken)


def imports_within(package: str) -> dict[str, set[str]]:
    """For each module of a package the modules of it that it imports, lazily or for types alone, too."""
    inside = {module: path for module, path in modules() if within(module, package)}

    def home(name: str) -> str | None:
        """The module that an imported name is, or is in."""
        return name if name in inside else home(name.rpartition(".")[0]) if name else None

    graph = {}
    for module, path in inside.items():
        names = imported_modules(path.read_text("utf-8"), module, path.name == "__init__.py")
        graph[module] = {found for name in names if (found := home(name)) not in (None, module, package)}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules that are left when all whose imports are settled are taken away, again and again."""
    waiting = dict(graph)
    while settled := [module for module, names in waiting.items() if not names & waiting.keys()]:
        for module in settled:
            del waiting[module]
    return sorted(waiting)


@pytest.mark.parametrize("package", ["emulator"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert circle_in(imports_within(package)) == []


def test_a_planted_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_every_package_is_looked_at() -> None:
    seen = {module.partition(".")[0] for module, _ in modules()}
    assert seen == {"driver_shim", "emulator", "sdk", "firmware_tools"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("driver_shim.protocol.ring", "from driver_shim.errors import NpuError"),
        ("driver_shim.protocol.ring", "from ..errors import NpuError"),
        ("driver_shim.function.dma", "import sdk.memory.buffers"),
        ("driver_shim.function.dma", "def late():\n    from emulator.function.function import PciFunction"),
        ("emulator.function.function", "from driver_shim.transport.base import Transport"),
        ("emulator.function.function", "from driver_shim import errors"),
        ("emulator.model.timing", "from emulator.function.function import PciFunction"),
        ("sdk.device", "from emulator.function.function import PciFunction"),
        ("sdk.device", "import emulator"),
        ("sdk.device", "from firmware_tools import image"),
        ("firmware_tools.image", "from sdk.device import Device"),
        ("sdk.queue.queue", "from tests.support import anything"),
        ("sdk.device", "from driver_shim.transport.vfio_user import VfioUserTransport"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("driver_shim.protocol.ring", "import struct\nfrom driver_shim.protocol.layout import Layout"),
        ("driver_shim.function.dma", "from . import errors"),
        ("emulator.function.function", "from driver_shim.protocol import registers\nfrom emulator.model import clock"),
        ("sdk.opening.addresses", "from emulator.model.profile import profile_names"),
        ("sdk.opening.addresses", "from driver_shim.transport.vfio_user import VfioUserTransport"),
        ("sdk.device", "from driver_shim.transport.base import Transport"),
        ("sdk.cli.firmware", "from firmware_tools import image"),
    ],
)
def test_what_the_rule_allows_passes(module: str, source: str) -> None:
    assert violations(source, module) == []
