"""The exec command: a program runs on an engine, then its outputs are committed to device memory."""

from __future__ import annotations

import math

import numpy as np

from driver_shim.protocol.commands import BINDING, EXEC, MAX_BINDINGS, FaultSource, Status
from driver_shim.protocol.program_commands import ROW_FIELDS
from emulator.chip.chip import Chip
from emulator.engines.job import GOLDEN_PREFIX, JobResult, Outcome
from emulator.engines.verdict import EntryFacts
from emulator.function.command_error import (
    CommandError,
    check_device_range,
    check_host_range,
    check_tensor_aligned,
    dma_error,
    refuse_reserved,
)
from emulator.function.jobs.job import SLICE_BYTES
from emulator.function.programs import Programs
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.model import timing
from emulator.model.work import RowCost, row_ticks


class ExecJob:
    """exec: run a loaded program on bound device buffers."""

    on_engine = True

    def __init__(self, chip: Chip, space: AddressSpace, programs: Programs, entry: bytes) -> None:
        refuse_reserved(EXEC, entry)
        *_, entry_point, handle, count, bindings, workspace = EXEC.codec.unpack(entry)
        self._chip = chip
        self._programs = programs
        self._program = programs.find(handle)
        if entry_point >= len(self._program.entries):
            raise CommandError(
                Status.INVALID_FIELD, f"exec: entry point {entry_point}; the program has {len(self._program.entries)}"
            )
        self._entry_point = entry_point
        placed = self._program.entries[entry_point]
        addresses = self._bound_addresses(space, bindings, count, placed)
        inputs, outputs = len(placed.inputs), len(placed.outputs)
        self._inputs, self._outputs = addresses[:inputs], addresses[inputs : inputs + outputs]
        self._states = addresses[inputs + outputs :]
        check_tensor_aligned(workspace, "workspace")
        check_device_range(chip.memory, workspace, placed.workspace_bytes, "workspace")
        # What rows say now is what the engine meets: the commands before this one in its queue have ended.
        ticks = placed.ticks + row_ticks(chip.profile, placed.row_costs, self._rows)
        self.cost = timing.throttled(ticks, chip.throttle())
        self.runnable = True
        self._result: JobResult | None = None
        self._job_id: int | None = None
        self._committed = 0
        self._commit_offset = 0

    def advance(self) -> int | None:
        """Start the engine, or commit the next slice of its outputs."""
        if self._job_id is None:
            self._start()
            return None
        if self._result is None:
            return None
        return self._commit(self._result)

    def discard(self) -> None:
        """The engine may have another job, whether it has ended this one or not."""
        if self._result is not None:
            self._programs.release(self._result)
        elif self._job_id is not None:
            self._programs.cancel(self._job_id)

    def _rows(self, each: RowCost) -> list[list[int]]:
        shape = (each.cost.batch, len(ROW_FIELDS))
        rows = np.frombuffer(self._chip.memory.view, "<i4", math.prod(shape), self._inputs[each.input])
        found: list[list[int]] = rows.reshape(shape).tolist()
        return found

    def _start(self) -> None:
        self.runnable = False
        self._job_id = self._programs.start(
            self._program, self._entry_point, self._inputs, self._states, self._take_result
        )

    def _take_result(self, result: JobResult) -> None:
        """The engine has ended this job; the next slices commit its outputs."""
        self._result = result
        self.runnable = True

    def _commit(self, result: JobResult) -> int | None:
        if result.outcome is not Outcome.OK:
            self._programs.release(result)
            lost = result.outcome is Outcome.ENGINE_LOST
            raise CommandError(
                result.status,
                result.message,
                source=FaultSource.ENGINE if lost else FaultSource.COMMAND,
                command_index=result.command_index,
            )
        budget = SLICE_BYTES
        memory = self._chip.memory.view
        while self._committed < len(result.outputs) and budget > 0:
            output = result.outputs[self._committed]
            size = min(budget, len(output) - self._commit_offset)
            to = self._outputs[self._committed] + self._commit_offset
            memory[to : to + size] = output[self._commit_offset : self._commit_offset + size]
            self._commit_offset += size
            budget -= size
            if self._commit_offset == len(output):
                self._committed += 1
                self._commit_offset = 0
        if self._committed < len(result.outputs):
            return None
        counters = self._chip.counters
        counters.program_commands += len(result.report)
        counters.fast_program_commands += sum(not run.kernel.startswith(GOLDEN_PREFIX) for run in result.report)
        self._programs.note_run(self._program, result.report)
        self._programs.release(result)
        return 0

    def _bound_addresses(self, space: AddressSpace, bindings: int, count: int, placed: EntryFacts) -> tuple[int, ...]:
        """Device addresses of inputs, outputs and states, each checked against what the program declares."""
        sizes = (*placed.inputs, *(size for _, size in placed.outputs), *placed.states)
        if count != len(sizes) or count > MAX_BINDINGS:
            raise CommandError(
                Status.BINDING_MISMATCH, f"exec: {count} buffers bound; program {self._program.handle} has {len(sizes)}"
            )
        if not count:
            return ()
        check_host_range(space, bindings, count * BINDING.size, write=False, what="binding table")
        try:
            table = bytes(space.read(bindings, count * BINDING.size))
        except DmaFault as fault:
            raise dma_error(fault, "binding table") from fault
        addresses = []
        for index, wanted in enumerate(sizes):
            address, size = BINDING.codec.unpack_from(table, index * BINDING.size)
            if size != wanted:
                raise CommandError(
                    Status.BINDING_MISMATCH, f"exec: buffer {index} has {size} bytes; the program needs {wanted}"
                )
            check_tensor_aligned(address, f"buffer {index}")
            check_device_range(self._chip.memory, address, size, f"buffer {index}")
            addresses.append(address)
        return tuple(addresses)
