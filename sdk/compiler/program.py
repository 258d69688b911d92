"""A model compiled ahead of time, without a device: its plan, where its nodes run, what a run of it will take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdk.compiler.compiled import CompiledProgram, Plan, TensorInfo
from sdk.here_only import HereOnly

if TYPE_CHECKING:
    from sdk.compiler.estimate import Estimate
    from sdk.compiler.graph import Graph
    from sdk.compiler.placement import NodePlacement


class Program(HereOnly):
    """A compiled model for one set of input shapes. `Device.load` takes it as it takes a model."""

    def __init__(
        self,
        graph: Graph,
        compiled: CompiledProgram | None,
        report: tuple[NodePlacement, ...],
        *,
        target: str | Path,
        fallback: str,
    ) -> None:
        """Use `sdk.compile`."""
        self._graph = graph
        self._compiled = compiled
        self.report = report
        """Where each node runs, and why not on the device."""
        self.target = target
        self.fallback = fallback

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What it takes; with the shapes that it was compiled for, where the device runs all of it."""
        return self._graph.signature.inputs if self._compiled is None else self._compiled.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What it gives, in graph order."""
        return self._graph.signature.outputs if self._compiled is None else self._compiled.outputs

    @property
    def plan(self) -> Plan | None:
        """Device memory, and what lives in it when; None where nodes run on the host, which settle shapes in a run."""
        return None if self._compiled is None else self._compiled.plan

    def estimate(self, profile: str | Path | None = None) -> Estimate | None:
        """What a run takes on a chip, the target unless another is named; None where nodes run on the host.

        A path is that of a profile of one's own. Raises ValueError for a profile that there is not, and for a chip that
        lacks a type that the program multiplies.
        """
        if self._compiled is None:
            return None
        from sdk.compiler.estimate import estimate

        return estimate(self._compiled, profile or self.target)

    def __repr__(self) -> str:
        return f"<Program {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"
