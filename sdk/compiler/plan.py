"""From operations to a container: places tensors, collects constants, encodes."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.layout import FieldError
from driver_shim.protocol.program import (
    MAX_CONTAINER_BYTES,
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    align_up,
    build,
)
from driver_shim.protocol.program_commands import OPERANDS
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, PACKED, WireType, pack
from emulator.model.work import program_work
from sdk.compiler.compiled import CompiledProgram, Constant, LiveRange, Plan, StateInfo, TensorInfo
from sdk.compiler.derived import Derived, Source, array_of
from sdk.compiler.ir import Operation, Value

NamedValue = tuple[str, Value]

NAMED_BYTES = 1 << 20
"""Larger initialisers are told apart by name: to read them for their contents would take as long as to send them."""


class _Workspace:
    """First-fit placement of tensors that live at the same time, and what became of it."""

    def __init__(self) -> None:
        self.size = 0
        self.unshared = 0
        self.live: list[LiveRange] = []
        self.peak_live_bytes = 0
        self.largest_hole_bytes = 0
        """At the command that needed the most room."""
        self._live_bytes = 0
        self._starts: list[int] = []
        self._held: dict[int, LiveRange] = {}

    def take(self, size: int, node: str, index: int) -> int:
        """The lowest place that is free, from the command `index` on."""
        needed = align_up(size)
        place = 0
        for start in self._starts:
            if start - place >= needed:
                break
            place = start + self._held[start].size_bytes
        bisect.insort(self._starts, place)
        self._held[place] = LiveRange(node, place, needed, index, index)
        self.unshared += needed
        self._live_bytes += needed
        self.peak_live_bytes = max(self.peak_live_bytes, self._live_bytes)
        if place + needed > self.size:
            self.size = place + needed
            self.largest_hole_bytes = self._largest_hole()
        return place

    def give(self, place: int, index: int) -> None:
        """Free a place after the command `index`."""
        del self._starts[bisect.bisect_left(self._starts, place)]
        freed = self._held.pop(place)
        self._live_bytes -= freed.size_bytes
        self.live.append(freed._replace(last=index))

    def _largest_hole(self) -> int:
        ends = [0, *(start + self._held[start].size_bytes for start in self._starts)]
        return max(start - end for start, end in zip([*self._starts, ends[-1]], ends, strict=True))


def encode(
    operations: Sequence[Operation],
    inputs: Sequence[NamedValue],
    outputs: Sequence[NamedValue],
    initializers: Mapping[str, NDArray[Any]],
    caches: Sequence[NamedValue] = (),
    states: Sequence[StateInfo] = (),
) -> CompiledProgram:
    """The program that computes `outputs`, each the result of an operation of its own.

    `initializers` are the model's, after which constants are called. `caches` are states that operations update in
    place; `states` says what lies in them. Equal arguments give equal bytes. Raises UnsupportedModel when something
    does not fit a container.
    """
    table = _Table(inputs, outputs, initializers, caches)
    workspace = _Workspace()
    last = {id(v): index for index, operation in enumerate(operations) for v in operation.inputs if v is not None}
    commands = []
    for index, operation in enumerate(operations):
        operands = tuple(table.operand(value, operation) if value is not None else None for value in operation.inputs)
        results = tuple(table.result(value, workspace, operation, index) for value in operation.outputs)
        commands.append(Command(operation.kind, operation.attributes, operands, results))
        for value in dict.fromkeys([*operation.inputs, *operation.outputs]):
            if value is not None and last.get(id(value), index) <= index:
                table.release(value, workspace, index)
    entry = EntryPoint(
        tuple(commands),
        tuple(Binding(name, table.ids[id(value)]) for name, value in inputs),
        tuple(Binding(name, table.ids[id(value)]) for name, value in outputs),
        workspace.size,
        tuple(Binding(name, table.ids[id(value)]) for name, value in caches),
    )
    program = Program(tuple(table.tensors), (entry,))
    work = program_work(program)
    plan = Plan(
        commands=len(commands),
        constants_bytes=sum({each.key: align_up(each.type.size_bytes) for each in table.constants}.values()),
        workspace_bytes=workspace.size,
        unshared_workspace_bytes=workspace.unshared,
        operands_bytes=_aligned_bytes([*(inputs[:-1] if caches else inputs), *outputs]),
        states_bytes=_aligned_bytes([*inputs[-1:], *caches] if caches else []),
        state_capacity_tokens=min((value.shape[1] * value.shape[2] for _, value in caches), default=0),
        peak_live_bytes=workspace.peak_live_bytes,
        largest_hole_bytes=workspace.largest_hole_bytes,
        live=tuple(sorted(workspace.live, key=lambda each: (each.first, each.offset))),
        macs=sum(item.macs for item in work),
        moved_bytes=sum(item.bytes for item in work),
    )
    return CompiledProgram(
        _container(program),
        tuple(table.constants),
        tuple(operation.node for operation in operations),
        tuple(map(_info, inputs)),
        tuple(map(_info, outputs)),
        plan,
        tuple(map(_info, caches)),
        tuple(states),
    )


def _aligned_bytes(values: Sequence[NamedValue]) -> int:
    """Device memory of tensors, each on a cache line of its own."""
    return sum(align_up(value.type.size_bytes) for _, value in values)


def _container(program: Program) -> bytes:
    try:
        image = build(program)
    except FieldError as error:
        raise UnsupportedModel(f"the model does not fit a program: {error}", subsystem="compiler") from None
    if len(image) > MAX_CONTAINER_BYTES:
        raise UnsupportedModel(
            f"the program has {len(image)} bytes; at most {MAX_CONTAINER_BYTES} are possible", subsystem="compiler"
        )
    return image


def _info(named: NamedValue) -> TensorInfo:
    name, value = named
    return TensorInfo(name, value.shape, value.dtype.text)


class _Keys:
    """The keys of constants: an initialiser's name where it is used as it stands, else what is in it."""

    def __init__(self, initializers: Mapping[str, NDArray[Any]]) -> None:
        self._names = {_bytes_of(array): name for name, array in initializers.items() if array.flags.c_contiguous}

    def key_of(self, source: Source) -> str:
        """The key of an array. Small ones are called after their contents, so that equal ones share a place."""
        return source.key(self._of_array) if isinstance(source, Derived) else self._of_array(source)

    def _of_array(self, array: NDArray[Any]) -> str:
        if array.nbytes > NAMED_BYTES and array.flags.c_contiguous:
            name = self._names.get(_bytes_of(array))
            if name is not None:
                return f"initializer:{name}"
        contents = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return f"sha256:{hashlib.sha256(contents.data).hexdigest()}"


def _bytes_of(array: NDArray[Any]) -> tuple[int, int]:
    """Where a contiguous array's elements lie: a view of all of them in another shape has the same place."""
    return array.__array_interface__["data"][0], array.nbytes


class _Table:
    """The tensor table as it grows; equal constants are one entry."""

    def __init__(
        self,
        inputs: Sequence[NamedValue],
        outputs: Sequence[NamedValue],
        initializers: Mapping[str, NDArray[Any]],
        caches: Sequence[NamedValue],
    ) -> None:
        self.tensors: list[Tensor] = []
        self.constants: list[Constant] = []
        self.ids: dict[int, int] = {}
        """Tensor id by the identity of its value."""
        self._outputs = {id(value) for _, value in outputs}
        self._keys = _Keys(initializers)
        self._known: dict[tuple[str, TensorType], int] = {}
        for _, value in inputs:
            self._add(value, Storage.INPUT, 0)
        for _, value in caches:
            self._add(value, Storage.STATE, 0)

    def operand(self, value: Value, operation: Operation) -> int:
        """The id of a value that a command reads."""
        known = self.ids.get(id(value))
        if known is not None:
            return known
        source = value.source
        if source is None:
            raise ValueError("an operation reads a value that nothing computes")
        if value.dtype is WireType.INT64 and not _fits(array_of(source)):
            raise UnsupportedModel(
                f"the model cannot run on the device: node {operation.node!r} needs an int64 constant with values that"
                " do not fit 32 bits",
                node=operation.node,
                op=operation.kind.name,
                subsystem="compiler",
            )
        if value.dtype in PACKED:
            source = pack(array_of(source))
        constant = Constant(self._keys.key_of(source), value.type, source)
        known = self._known.get((constant.key, constant.type))
        if known is None:
            known = self._known[constant.key, constant.type] = self._add(value, Storage.CONSTANT, 0)
            self.constants.append(constant)
        self.ids[id(value)] = known
        return known

    def result(self, value: Value, workspace: _Workspace, operation: Operation, index: int) -> int:
        """The id of a value that a command writes."""
        state = self._updated(value, operation)
        if state is not None:
            self.ids[id(value)] = state
            return state
        if id(value) in self._outputs:
            return self._add(value, Storage.OUTPUT, 0)
        place = workspace.take(value.type.size_bytes, operation.node, index) if value.type.elements else 0
        return self._add(value, Storage.WORKSPACE, place)

    def _updated(self, value: Value, operation: Operation) -> int | None:
        """The id of the state that a command's first output is, where it updates one."""
        place = OPERANDS[operation.kind].in_place
        past = None if place is None or value is not operation.outputs[0] else operation.inputs[place]
        known = None if past is None else self.ids[id(past)]
        return known if known is not None and self.tensors[known].storage is Storage.STATE else None

    def release(self, value: Value, workspace: _Workspace, index: int) -> None:
        """No command after `index` reads the value."""
        entry = self.tensors[self.ids[id(value)]]
        if entry.storage is Storage.WORKSPACE and entry.type.elements:
            workspace.give(entry.offset, index)

    def _add(self, value: Value, storage: Storage, offset: int) -> int:
        self.tensors.append(Tensor(value.type, storage, offset))
        self.ids[id(value)] = len(self.tensors) - 1
        return len(self.tensors) - 1


def _fits(array: NDArray[Any]) -> bool:
    return not array.size or bool(array.min() >= INT64_STORAGE_MIN and array.max() <= INT64_STORAGE_MAX)
