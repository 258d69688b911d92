"""A model whose regions run one after the other, on the device and on the host."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.types import UnsupportedType, wire_type_of
from sdk.compiler.compile import NodeRefused
from sdk.compiler.graph import Graph, GraphInput
from sdk.compiler.placement import NodePlacement, Placement, Region, Where, place, region_graph
from sdk.compiler.problems import Problem, Reason
from sdk.model.host_region import HostRegion, require_engine

Array = NDArray[Any]

_log = logging.getLogger("npu")
_T = TypeVar("_T")
MOST_NAMED = 8
"""Nodes that one warning names."""


class DeviceRegion(Protocol):
    """A region on the device. Raises NodeRefused, or UnsupportedModel for another reason why it cannot run."""

    def run(self, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """What it gives for these."""

    def check(self) -> None:
        """Compile it for the shapes that it declares."""


class _Replaced(Exception):
    """Nodes moved to the host: the run begins anew."""


class Pipeline:
    """The regions of one model. Thread-safe."""

    def __init__(self, graph: Graph, load: Callable[[Graph], DeviceRegion]) -> None:
        """`load` makes a device's region of a graph. Raises UnsupportedModel for a model that runs nowhere."""
        self.graph = graph
        self._load = load
        self._lock = threading.Lock()
        self._refused: dict[int, Problem] = {}
        self._sizes: dict[str, int] = {}
        self._set(place(graph))

    @property
    def report(self) -> tuple[NodePlacement, ...]:
        """Where each node runs, and why."""
        with self._lock:
            return self._placement.report(self._sizes)

    @property
    def is_whole(self) -> bool:
        """Whether the device runs all of it."""
        return self._placement.is_whole

    @property
    def device_regions(self) -> int:
        """How many regions the device runs, as far as is known."""
        return sum(region.where is Where.DEVICE for region in self._placement.regions)

    def on_device(self) -> list[DeviceRegion]:
        """The device's regions that were loaded, in the order of their running."""
        with self._lock:
            return [self._device[key] for key in sorted(self._device, key=lambda key: key[0])]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs. Raises UnsupportedModel for what neither side runs."""
        while True:
            with self._lock:
                placement = self._placement
            try:
                return self._attempt(placement, arrays)
            except _Replaced:
                continue

    def check(self) -> None:
        """Find out without a run what does not fit the device, where the model declares all shapes."""
        if not all(_is_fixed(entry) for entry in self.graph.inputs):
            return
        while True:
            with self._lock:
                placement = self._placement
            if not placement.is_whole or not placement.regions:
                return
            try:
                self._attempted(placement, placement.regions[0], partial(self._check_whole, placement))
            except _Replaced:
                continue
            return

    def _check_whole(self, placement: Placement) -> None:
        inputs = [entry for entry in self.graph.inputs if entry.name in placement.regions[0].inputs]
        self._loaded(placement, 0, inputs).check()

    def _attempt(self, placement: Placement, arrays: Mapping[str, Array]) -> dict[str, Array]:
        values: dict[str, Array] = {**self.graph.initializers, **arrays}
        for position, region in enumerate(placement.regions):
            if region.where is Where.HOST:
                results: Mapping[str, Array] = self._on_host(placement, position).run(values)
            else:
                results = self._on_device(placement, position, values)
            values.update(results)
        crossing = placement.crossing_names()
        with self._lock:
            self._sizes.update({name: values[name].nbytes for name in crossing})
        return {entry.name: np.asarray(values[entry.name]) for entry in self.graph.outputs}

    def _on_host(self, placement: Placement, position: int) -> HostRegion:
        with self._lock:
            found = self._host.get(position) if placement is self._placement else None
            if found is None:
                found = self._host[position] = HostRegion(self.graph, placement.regions[position])
            return found

    def _on_device(self, placement: Placement, position: int, values: Mapping[str, Array]) -> Mapping[str, Array]:
        region = placement.regions[position]
        try:
            inputs = [self._declared(name, values[name]) for name in region.inputs]
        except UnsupportedType as error:
            self._move(placement, _readers(region, values), str(error), Reason.TYPE)
            raise _Replaced from None
        given = {name: values[name] for name in region.inputs}
        return self._attempted(placement, region, lambda: self._loaded(placement, position, inputs).run(given))

    def _loaded(self, placement: Placement, position: int, inputs: list[GraphInput]) -> DeviceRegion:
        """The region for inputs of these types and ranks."""
        key = (position, *((entry.name, entry.dtype, len(entry.shape or ())) for entry in inputs))
        with self._lock:
            known = self._device.get(key) if placement is self._placement else None
        if known is None:
            known = self._load(region_graph(placement, placement.regions[position], inputs))
            with self._lock:
                if placement is self._placement:
                    self._device[key] = known
        return known

    def _attempted(self, placement: Placement, region: Region, attempt: Callable[[], _T]) -> _T:
        """What an attempt gives; nodes that turn out not to fit the device move to the host. Raises _Replaced then."""
        try:
            return attempt()
        except NodeRefused as error:
            found = error.problems[0]
            self._move(placement, list(error.positions), found.reason, Reason(found.code))
        except UnsupportedModel as error:
            positions = [node.subject.position for node in region.nodes]
            self._move(placement, positions, error.message, Reason.FORM)
        raise _Replaced

    def _declared(self, name: str, array: Array) -> GraphInput:
        """A region's input: the model's own as declared, one that another region gives as it came."""
        for entry in (*self.graph.inputs, *self.graph.optional):
            if entry.name == name:
                return entry
        dtype = wire_type_of(array.dtype)
        return GraphInput(name, dtype, tuple(f"{name}.{axis}" for axis in range(array.ndim)), dtype.text)

    def _move(self, placement: Placement, positions: list[int], reason: str, code: Reason) -> None:
        """Have nodes run on the host from now on."""
        with self._lock:
            if placement is not self._placement:
                return  # another run has found out already
            subjects = {node.subject.position: node.subject for node in self.graph.nodes}
            for position in positions:
                self._refused.setdefault(position, Problem(reason, subjects[position], code))
            self._set(place(self.graph, self._refused))

    def _set(self, placement: Placement) -> None:
        self._placement = placement
        self._host: dict[int, HostRegion] = {}
        self._device: dict[tuple[Any, ...], DeviceRegion] = {}
        if not placement.is_whole:
            require_engine()
            _warn(placement.report())


def _is_fixed(entry: GraphInput) -> bool:
    return entry.shape is not None and all(isinstance(extent, int) for extent in entry.shape)


def _readers(region: Region, values: Mapping[str, Array]) -> list[int]:
    """The nodes of a region that read a value of a type that the device does not have."""
    foreign = {name for name in region.inputs if not _is_on_the_wire(values[name])}
    return [node.subject.position for node in region.nodes if not foreign.isdisjoint(node.reads)]


def _is_on_the_wire(array: Array) -> bool:
    try:
        wire_type_of(array.dtype)
    except UnsupportedType:
        return False
    return True


def _warn(report: tuple[NodePlacement, ...]) -> None:
    """Say what runs on the host: nothing does unsaid."""
    moved = [entry for entry in report if entry.where is Where.HOST]
    named = ", ".join(f"{entry.op} {entry.node!r} ({entry.code})" for entry in moved[:MOST_NAMED])
    more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    _log.warning(
        "%d of %d nodes run on the host, in onnxruntime: %s%s; see model.report", len(moved), len(report), named, more
    )
