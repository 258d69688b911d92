"""Arrays of a model run from and to files: `-i NAME=FILE.npy[:bf16]`, seeded inputs, and `-o DIR`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from sdk.cli.exit_codes import Failure
from sdk.memory.buffers import as_dtype

if TYPE_CHECKING:
    from sdk.compiler import TensorInfo

SEED = 1
BFLOAT16_SUFFIX = ":bf16"
DTYPES_FILE = "dtypes.json"
_SMALL_INTEGERS = 8
"""Seeded 16- to 64-bit integers lie below this: they are mostly indices, and large ones would be out of range."""


def read_inputs(given: Sequence[str], inputs: Sequence[TensorInfo]) -> dict[str, NDArray[Any]]:
    """The arrays that `-i` names. Raises click.UsageError, Failure for a file that is no array."""
    names = [info.name for info in inputs]
    arrays = {}
    for text in given:
        name, assigns, path = text.partition("=")
        if not assigns or not path:
            raise click.UsageError(f"-i {text}: write NAME=FILE.npy, or NAME=FILE.npy:bf16")
        if name not in names:
            raise click.UsageError(f"-i {text}: no such input; the model takes {', '.join(map(str, inputs))}")
        if name in arrays:
            raise click.UsageError(f"-i {text}: the input {name!r} has a file already")
        arrays[name] = _fitting(_read(path), path, inputs[names.index(name)])
    missing = [str(info) for info in inputs if info.name not in arrays]
    if missing:
        raise click.UsageError(f"inputs without a file: {', '.join(missing)}; give each with -i, or none at all")
    return arrays


def _read(path: str) -> NDArray[Any]:
    as_bfloat16 = path.endswith(BFLOAT16_SUFFIX)
    path = path.removesuffix(BFLOAT16_SUFFIX)
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{path}: cannot be read as an .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise Failure(f"{path}: is an .npz archive of arrays; give one .npy array")
    if not as_bfloat16:
        return array
    if array.dtype.itemsize != np.dtype(np.uint16).itemsize:
        raise Failure(f"{path}: bfloat16 elements have 2 bytes, {array.dtype} has {array.dtype.itemsize}")
    converted: NDArray[Any] = array.view(as_dtype("bfloat16"))
    return converted


def _fitting(array: NDArray[Any], path: str, info: TensorInfo) -> NDArray[Any]:
    """The array, if the model's input may have its type and shape; else Failure."""
    expected = as_dtype(info.dtype)
    if array.dtype != expected:
        hint = f"; say {path}{BFLOAT16_SUFFIX}" if expected.name == "bfloat16" and array.dtype.itemsize == 2 else ""
        raise Failure(f"{path}: input {info.name!r} is {info.dtype}; the file holds {array.dtype.str}{hint}")
    fits = len(array.shape) == len(info.shape) and all(
        extent == wanted if isinstance(wanted, int) else extent > 0
        for extent, wanted in zip(array.shape, info.shape, strict=True)
    )
    if not fits:
        raise Failure(f"{path}: the model takes {info}; the file's shape is {array.shape}")
    return array


def seeded_inputs(inputs: Sequence[TensorInfo]) -> dict[str, NDArray[Any]]:
    """Reproducible arrays for every input; unknown extents are 1."""
    generator = np.random.default_rng(SEED)
    return {info.name: _seeded(info, generator) for info in inputs}


def _seeded(info: TensorInfo, generator: np.random.Generator) -> NDArray[Any]:
    shape = tuple(extent if isinstance(extent, int) else 1 for extent in info.shape)
    dtype = as_dtype(info.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max) if limits.bits == 8 else (0, _SMALL_INTEGERS - 1)
        return generator.integers(low, high, shape, dtype=dtype, endpoint=True)
    return generator.standard_normal(shape).astype(dtype)


def write_outputs(folder: Path, outputs: Mapping[str, NDArray[Any]]) -> list[str]:
    """Write NAME.npy for every output and their types beside them; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, dtypes = [], {}
    for index, (name, array) in enumerate(outputs.items()):
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or f"output{index}"
        if f"{stem}.npy" in dtypes:
            stem = f"{stem}.{index}"
        plain = array if array.dtype.isbuiltin == 1 else array.view(np.uint16)  # .npy has no bfloat16
        np.save(folder / f"{stem}.npy", plain)
        dtypes[f"{stem}.npy"] = {"output": name, "dtype": array.dtype.name}
        paths.append(str(folder / f"{stem}.npy"))
    (folder / DTYPES_FILE).write_text(json.dumps(dtypes, indent=2) + "\n", "utf-8")
    return paths
