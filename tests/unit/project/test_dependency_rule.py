"""Which package and which room of it may import which, and no circles.

Read from the source, so that a lazy import, or one for the types alone, counts as much as one at the top.
"""

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

ROOMS: dict[str, tuple[str, ...]] = {
    "driver_shim": (
        "driver_shim.protocol",
        "driver_shim.shared",
        "driver_shim.timeouts",
        "driver_shim.errors",
        "driver_shim.cards",
        "driver_shim.transport",
        "driver_shim.function",
        "driver_shim.firmware",
    ),
    "emulator": (
        "emulator.timeouts",
        "emulator.state_error",
        "emulator.model",
        "emulator.host_memory",
        "emulator.engines",
        "emulator.management.riscv",
        "emulator.management.link",
        "emulator.management.port",
        "emulator.management.npu",
        "emulator.management.process",
        "emulator.chip",
        "emulator.usb",
        "emulator.function",
        "emulator.build",
        "emulator.server",
        "emulator.publication",
        "emulator.serve",
        "emulator.__main__",
    ),
    "firmware_tools": (
        "firmware_tools.errors",
        "firmware_tools.files",
        "firmware_tools",
        "firmware_tools.export",
        "firmware_tools.reference_firmware",
    ),
    "sdk": (
        "sdk.version",
        "sdk.errors",
        "sdk.environment",
        "sdk.here_only",
        "sdk.log_pages",
        "sdk.opening",
        "sdk.memory",
        "sdk.queue",
        "sdk.compiler",
        "sdk.quantisation",
        "sdk.state",
        "sdk.model",
        "sdk.open_function",
        "sdk.device",
        "sdk",
        "sdk.chat",
        "sdk.validate",
        "sdk.cli",
    ),
}
"""The rooms of each package, from the ground up: a module imports from its own room and from those before it."""

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


def room_of(module: str) -> int | None:
    """The position of a module's room among its package's; None for a package whose docstring is all it has."""
    rooms = ROOMS[module.partition(".")[0]]
    holding = [room for room in rooms if within(module, room)]
    return rooms.index(max(holding, key=len)) if holding else None


def upward(source: str, module: str, known: set[str]) -> list[str]:
    """Imports that point to a room above the module's own."""
    package, own = module.partition(".")[0], room_of(module)
    found = []
    for name in sorted(imported_modules(source, module, is_package=False)):
        target = name if name in known else name.rpartition(".")[0]
        if target.partition(".")[0] != package or target not in known:
            continue
        room = room_of(target)
        if room is not None and (own is None or room > own):
            found.append(f"{module} imports {name}, which is in a room above its own")
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Nodes of some circle, in its order; empty where there is none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(arrows.get(node, ())):
            found = search(following, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(arrows) if (found := search(node, []))), [])


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


def test_no_import_points_upwards() -> None:
    sources = modules()
    known = {module for module, _ in sources}
    broken = [line for module, path in sources for line in upward(path.read_text("utf-8"), module, known)]
    assert not broken, "\n".join(broken)


def test_every_room_has_a_place_in_the_order() -> None:
    homeless = [
        module
        for module, path in modules()
        if room_of(module) is None and path.name != "__init__.py"  # a package's own page imports nothing
    ]
    assert not homeless


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = modules()
    known = {module for module, _ in sources}
    arrows = {}
    for module, path in sources:
        names = imported_modules(path.read_text("utf-8"), module, path.name == "__init__.py")
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        arrows[module] = (targets & known) - {module}
    assert circle(arrows) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("driver_shim.protocol.ring", "from driver_shim.shared import fences"),
        ("driver_shim.transport.base", "if TYPE_CHECKING:\n    from driver_shim.function.dma import HostMemory"),
        ("driver_shim.cards.discovery", "from driver_shim.transport.base import Transport"),
        ("emulator.chip.chip", "from emulator.function.function import PciFunction"),
        ("emulator.management.riscv.hart", "from emulator.management import link"),
        ("sdk.memory.buffers", "def late():\n    from sdk.device import Device"),
        ("sdk.queue.events", "from sdk.open_function import OpenFunction"),
        ("sdk.opening.addresses", "import sdk.device"),
    ],
)
def test_a_planted_arrow_upwards_is_found(module: str, source: str) -> None:
    known = {name for name, _ in modules()}
    assert len(upward(source, module, known)) == 1


def test_a_planted_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


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
