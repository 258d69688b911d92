"""The black box: what the device copies aside before a reset wipes it, for whoever asks why."""

from __future__ import annotations

from collections.abc import Iterable

from driver_shim.protocol.commands import (
    BLACK_BOX,
    BLACK_BOX_COMPLETION,
    BLACK_BOX_DESCRIPTOR,
    BLACK_BOX_QUEUE,
    COMPLETION,
    ERROR_ENTRY,
    PHASE_OFFSET,
    ResetCause,
)

EMPTY = BLACK_BOX.build()
"""The page while nothing was ever saved."""


def encode_black_box(
    cause: ResetCause,
    clocks: tuple[int, int],
    registers: bytes,
    queues: Iterable[bytes],
    descriptors: Iterable[tuple[int, bytes]],
    completions: Iterable[tuple[int, int, int, int, int, int, int]],
    errors: list[bytes],
) -> bytes:
    """The BLACK_BOX log page: header, registers, queue states, descriptors, completions, error entries.

    `completions` are (queue, submission head, command id, status, result, start tick, end tick), oldest first.
    """
    queue_parts = list(queues)
    descriptor_parts = [BLACK_BOX_DESCRIPTOR.build(queue=queue, descriptor=entry) for queue, entry in descriptors]
    completion_parts = [_completion(*fields) for fields in completions]
    header = BLACK_BOX.build(
        present=1,
        cause=int(cause),
        tick=clocks[0],
        wall_nanoseconds=clocks[1],
        register_bytes=len(registers),
        queue_count=len(queue_parts),
        descriptor_count=len(descriptor_parts),
        completion_count=len(completion_parts),
        error_count=len(errors),
    )
    return b"".join((header, registers, *queue_parts, *descriptor_parts, *completion_parts, *errors))


def check_page(page: bytes) -> None:
    """Raise ValueError unless `page` is as long as its header says that its parts are."""
    header = BLACK_BOX.parse(page[: BLACK_BOX.size])
    parts = (
        header.register_bytes,
        header.queue_count * BLACK_BOX_QUEUE.size,
        header.descriptor_count * BLACK_BOX_DESCRIPTOR.size,
        header.completion_count * BLACK_BOX_COMPLETION.size,
        header.error_count * ERROR_ENTRY.size,
    )
    if len(page) != BLACK_BOX.size + sum(parts):
        raise ValueError(f"a black box of {len(page)} bytes whose parts have {BLACK_BOX.size + sum(parts)}")


def _completion(queue: int, head: int, command_id: int, status: int, result: int, start: int, end: int) -> bytes:
    body = bytearray(COMPLETION.pack(head, command_id, status, 0, result, start, end))
    body[PHASE_OFFSET] = 0
    return BLACK_BOX_COMPLETION.build(queue=queue, completion=bytes(body))
