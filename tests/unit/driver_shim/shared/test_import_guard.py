"""onnxruntime cannot be imported where the guard is installed, and the message says why."""

from __future__ import annotations

import subprocess
import sys

PATIENCE_S = 120


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    ).stdout


def test_the_guard_bars_the_package_and_its_parts_and_nothing_else() -> None:
    output = run(
        "from driver_shim.shared import import_guard\n"
        "assert not import_guard.installed()\n"
        "import_guard.install(); import_guard.install()\n"
        "assert import_guard.installed()\n"
        "import wave\n"
        "for name in ('onnxruntime', 'onnxruntime.capi'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    assert output.count("onnxruntime is barred from this process") == 2


def test_it_refuses_to_come_too_late() -> None:
    output = run(
        "import sys, types\n"
        "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
        "from driver_shim.shared import import_guard\n"
        "try:\n"
        "    import_guard.install()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    assert "already imported" in output


def test_importing_the_engines_does_not_import_heavy_packages() -> None:
    output = run(
        "import sys, emulator.engines.worker; print(sorted({'onnx', 'onnxruntime', 'asyncio'} & set(sys.modules)))"
    )
    assert output.strip() == "[]"
