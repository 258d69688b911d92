"""Compiled programs on disk: one file each, which says all that it depends on.

A file is a header in JSON, the program's container, and those constants that the model itself does not hold; they are
mapped when it is read. It lies in a folder named after the model, so that a miss can say what the entries that are
there were compiled for instead. It is written beside its place and renamed: others see it whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import driver_shim.protocol
import emulator.model
from driver_shim.protocol.program import TensorType, align_up
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR
from driver_shim.protocol.types import PACKED, WireType
from sdk.compiler import cache_limit
from sdk.compiler.compiled import CompiledProgram, Constant, LiveRange, Plan, StateInfo, StateKind, TensorInfo
from sdk.compiler.graph import Graph
from sdk.compiler.tensor_data import map_file
from sdk.version import VERSION

_log = logging.getLogger("npu")
_MAGIC = b"npu program 1\n"
_LENGTHS_BYTES = 16
"""The header's length and its CRC-32, eight bytes each."""
_INITIALIZER = "initializer:"
_COMPILER_FOLDERS = (Path(__file__).parent, *map(Path, (*emulator.model.__path__, *driver_shim.protocol.__path__)))
"""What a program's bytes depend on beside the model."""


class DamagedEntry(ValueError):
    """A file of the cache is not what was written there."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheKey:
    """All that a compiled program depends on."""

    model: str
    """Digest of the model and its data."""
    parts: Mapping[str, str]
    """The rest by name, as people read it: a miss tells which of them differ."""

    @property
    def path(self) -> Path:
        """Where the program lies in the cache."""
        text = json.dumps([self.model, dict(self.parts)], sort_keys=True)
        return Path(self.model[:32], hashlib.sha256(text.encode()).hexdigest()[:32] + ".program")


def cache_key(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, NDArray[Any]],
    target: str,
    states: str = "",
) -> CacheKey:
    """The key of a graph compiled for these shapes and values, and for states as a text says them."""
    held = {
        name: f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
        for name, array in values.items()
    }
    nodes = "".join(f"{node.subject.position}," for node in graph.nodes)
    inputs = [f"{entry.name}:{entry.type_name}" for entry in graph.inputs]
    parts = {
        "compiler": f"{VERSION} {compiler_digest()[:16]}",
        "contract": f"{CONTRACT_MAJOR}.{CONTRACT_MINOR}",
        "target": target,
        "shapes": json.dumps({name: list(shape) for name, shape in shapes.items()}),
        "values": json.dumps(held),
        "states": states,
        "part": hashlib.sha256(json.dumps([nodes, inputs]).encode()).hexdigest()[:16],
    }
    return CacheKey("" if graph.data is None else graph.data.digest(), parts)


@functools.cache
def compiler_digest() -> str:
    """What the compiler's own source holds: any change of it may change programs."""
    whole = hashlib.sha256()
    for folder in _COMPILER_FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def cached(folder: Path, key: CacheKey, graph: Graph, compile_now: Callable[[], CompiledProgram]) -> CompiledProgram:
    """The program from the cache; compiled and put there if it is missing or damaged. The log says why it was not."""
    path = folder / key.path
    try:
        program = _read(path, key, graph)
    except FileNotFoundError:
        _log.info("compile cache: %s", _explain(path.parent, key))
    except (DamagedEntry, OSError) as error:
        _log.warning("compile cache: %s cannot be used and is made anew: %s", path, error)
    else:
        _log.info("compile cache: %s has the program", path)
        cache_limit.note_use(path)
        return program
    program = compile_now()
    try:
        _write(path, key, program)
        cache_limit.trim(folder)
    except OSError as error:
        _log.warning("compile cache: the program is not kept: %s", error)
    return program


def _explain(folder: Path, key: CacheKey) -> str:
    """Why there is no entry: what those of the same model differ in, by the one that differs least."""
    others = []
    for path in sorted(folder.glob("*.program")):
        with contextlib.suppress(OSError, DamagedEntry):
            others.append(_header(_content(path))[0]["parts"])
    if not others:
        return "the model was never compiled with this cache"
    differing = [[name for name in key.parts if other.get(name) != key.parts[name]] for other in others]
    nearest = min(range(len(others)), key=lambda index: len(differing[index]))
    changes = (f"{name} {others[nearest].get(name)} there, {key.parts[name]} now" for name in differing[nearest])
    return f"the model was compiled with another {'; another '.join(changes)}"


# --- files -------------------------------------------------------------------------------------------------------


def _write(path: Path, key: CacheKey, program: CompiledProgram) -> None:
    kept = [constant for constant in program.constants if not constant.key.startswith(_INITIALIZER)]
    numbers = {id(constant): number for number, constant in enumerate(kept, 1)}
    constants = []
    for constant in program.constants:
        entry: dict[str, Any] = {"key": constant.key, "dtype": int(constant.type.dtype), "shape": constant.type.shape}
        if id(constant) in numbers:
            entry["blob"] = numbers[id(constant)]
        constants.append(entry)
    places, end = [], 0
    for blob in _blobs(program.image, kept):
        places.append((end, blob.nbytes, zlib.crc32(blob)))
        end += align_up(blob.nbytes)
    header = json.dumps(
        {
            "parts": dict(key.parts),
            "blobs": places,
            "constants": constants,
            "nodes": program.nodes,
            "inputs": [dataclasses.astuple(info) for info in program.inputs],
            "outputs": [dataclasses.astuple(info) for info in program.outputs],
            "plan": dataclasses.asdict(program.plan),
            "caches": [dataclasses.astuple(info) for info in program.caches],
            "states": program.states,
        }
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
        try:
            lengths = len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(8, "little")
            file.write(_MAGIC + lengths + header)
            file.write(bytes(_start(len(header)) - file.tell()))
            for blob in _blobs(program.image, kept):
                file.write(blob)
                file.write(bytes(align_up(blob.nbytes) - blob.nbytes))
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def _blobs(image: bytes, constants: Sequence[Constant]) -> Iterator[memoryview]:
    """The contents of an entry, one at a time: what constants are made of may be all that is in memory."""
    yield memoryview(image)
    for constant in constants:
        yield np.ascontiguousarray(constant.array).reshape(-1).view(np.uint8).data


def _start(header_bytes: int) -> int:
    """Where the first blob begins."""
    return align_up(len(_MAGIC) + _LENGTHS_BYTES + header_bytes)


def _content(path: Path) -> memoryview:
    try:
        return map_file(path).content
    except ValueError as error:  # a folder, a pipe
        raise DamagedEntry(str(error)) from error


def _read(path: Path, key: CacheKey, graph: Graph) -> CompiledProgram:
    content = _content(path)
    header, start = _header(content)
    if header.get("parts") != dict(key.parts):
        raise DamagedEntry("it belongs to another program")
    try:
        blobs = [_blob(content, start, *place) for place in header["blobs"]]
        plan = header["plan"]
        plan["live"] = tuple(LiveRange(*each) for each in plan["live"])
        return CompiledProgram(
            bytes(blobs[0]),
            tuple(_constant(entry, blobs, graph) for entry in header["constants"]),
            tuple(header["nodes"]),
            _infos(header["inputs"]),
            _infos(header["outputs"]),
            Plan(**plan),
            _infos(header["caches"]),
            tuple(map(_state, header["states"])),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DamagedEntry(f"its header is wrong: {error}") from error


def _infos(entries: Iterable[tuple[str, list[int], str]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, tuple(shape), dtype) for name, shape, dtype in entries)


def _state(entry: list[Any]) -> StateInfo:
    state = StateInfo(*entry)
    return state._replace(shape=tuple(state.shape), kind=StateKind(state.kind))


def _header(content: memoryview) -> tuple[dict[str, Any], int]:
    """(the header, where the first blob begins)"""
    at = len(_MAGIC)
    if bytes(content[:at]) != _MAGIC or len(content) < at + _LENGTHS_BYTES:
        raise DamagedEntry("it is no program of this cache")
    length, checksum = (int.from_bytes(content[at + i : at + i + 8], "little") for i in (0, 8))
    text = content[at + _LENGTHS_BYTES :][:length]
    if len(text) != length or zlib.crc32(text) != checksum:
        raise DamagedEntry("its header is damaged")
    try:
        header = json.loads(bytes(text))
    except ValueError as error:
        raise DamagedEntry("its header is damaged") from error
    return header, _start(length)


def _blob(content: memoryview, start: int, offset: int, length: int, checksum: int) -> memoryview:
    blob = content[start + offset :][:length]
    if len(blob) != length or zlib.crc32(blob) != checksum:
        raise DamagedEntry("its contents are damaged")
    return blob


def _constant(entry: Mapping[str, Any], blobs: list[memoryview], graph: Graph) -> Constant:
    kind = TensorType(WireType(entry["dtype"]), tuple(entry["shape"]))
    if "blob" in entry:
        raw = blobs[entry["blob"]]
        if kind.dtype in PACKED:
            array = np.frombuffer(raw, np.uint8)
        elif raw:
            array = np.frombuffer(raw, kind.dtype.dtype).reshape(kind.shape)
        else:
            array = np.empty(kind.shape, kind.dtype.dtype)
    else:
        array = graph.initializers[entry["key"].removeprefix(_INITIALIZER)].reshape(kind.shape)
    return Constant(entry["key"], kind, array)
