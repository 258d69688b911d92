"""What configurations beside a model's file say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdk.compiler.graph import Graph
from sdk.compiler.problems import Problem, unsupported

CONFIG = "genai_config.json"
"""Beside a model, it says what its states are called."""


def config_beside(graph: Graph, name: str = CONFIG) -> Mapping[str, Any]:
    """What a configuration in the model's folder says; nothing where there is none."""
    folder = None if graph.data is None else graph.data.folder
    if folder is None or not (folder / name).is_file():
        return {}
    return read_config(folder / name)


def section(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """What a configuration says under these names; nothing where it has no such section."""
    for name in names:
        inner = config.get(name)
        config = inner if isinstance(inner, Mapping) else {}
    return config


def read_config(path: Path) -> Mapping[str, Any]:
    """A configuration. Raises UnsupportedModel for a file that is none."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise unsupported([Problem(f"{str(path)!r} is no JSON: {error}")]) from None
    if not isinstance(content, dict):
        raise unsupported([Problem(f"{str(path)!r} holds no object")])
    return content
