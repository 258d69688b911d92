"""Statuses that each command can complete with. A device that answers with another breaks the contract."""

from __future__ import annotations

from collections.abc import Mapping

from driver_shim.protocol.commands import AdminOpcode, IoOpcode, Status

_ALWAYS = (Status.SUCCESS, Status.INVALID_FIELD, Status.INVALID_CONTEXT)
"""Flags and reserved bytes are refused first, then contexts that do not exist."""

UNKNOWN_OPCODE = (Status.INVALID_FIELD, Status.INVALID_CONTEXT, Status.INVALID_OPCODE)
"""What an opcode that the queue does not know can complete with."""

STATUSES: Mapping[IoOpcode | AdminOpcode, tuple[Status, ...]] = {
    IoOpcode.NOP: _ALWAYS,
    IoOpcode.COPY: (*_ALWAYS, Status.DMA_FAULT, Status.DEVICE_ADDRESS_FAULT),
    IoOpcode.FILL: (*_ALWAYS, Status.DMA_FAULT, Status.DEVICE_ADDRESS_FAULT, Status.MISALIGNED),
    IoOpcode.EXEC: (
        *_ALWAYS,
        Status.DMA_FAULT,
        Status.DEVICE_ADDRESS_FAULT,
        Status.MISALIGNED,
        Status.INVALID_PROGRAM,
        Status.BINDING_MISMATCH,
        Status.VALUE_OUT_OF_RANGE,
        Status.INDEX_OUT_OF_RANGE,
        Status.DIVISION_BY_ZERO,
        Status.EXECUTION_FAULT,
        Status.ENGINE_LOST,
    ),
    IoOpcode.BARRIER: _ALWAYS,
    AdminOpcode.IDENTIFY: (*_ALWAYS, Status.DMA_FAULT),
    AdminOpcode.CREATE_QUEUE: (
        *_ALWAYS,
        Status.INVALID_QUEUE,
        Status.QUEUE_EXISTS,
        Status.INVALID_QUEUE_SIZE,
        Status.INVALID_VECTOR,
        Status.MISALIGNED,
        Status.NOT_SHAREABLE,
    ),
    AdminOpcode.DELETE_QUEUE: (*_ALWAYS, Status.INVALID_QUEUE),
    AdminOpcode.CONFIGURE_SHADOWS: (*_ALWAYS, Status.MISALIGNED, Status.NOT_SHAREABLE),
    AdminOpcode.GET_LOG_PAGE: (*_ALWAYS, Status.DMA_FAULT, Status.INVALID_LOG_PAGE),
    AdminOpcode.LOAD_PROGRAM: (
        *_ALWAYS,
        Status.DEVICE_ADDRESS_FAULT,
        Status.MISALIGNED,
        Status.NOT_SHAREABLE,
        Status.PROGRAM_REJECTED,
        Status.BINDING_MISMATCH,
        Status.PROGRAM_LIMIT,
        Status.ENGINE_LOST,
    ),
    AdminOpcode.UNLOAD_PROGRAM: (*_ALWAYS, Status.INVALID_PROGRAM),
    AdminOpcode.GET_PROGRAM_REPORT: (*_ALWAYS, Status.DMA_FAULT, Status.INVALID_PROGRAM),
}

NEVER_COMPLETED = (Status.QUEUE_CORRUPT, Status.INTERNAL)
"""QUEUE_CORRUPT stands in the error log only: a halted queue completes nothing. INTERNAL is reserved."""
