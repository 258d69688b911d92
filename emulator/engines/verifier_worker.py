"""A verifier as a process: takes containers from its socket, answers with what it makes of them.

A request is a number and a file with the container, an answer the number and a file with the verdict as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from driver_shim.protocol.commands import Status
from driver_shim.shared.child_process import die_with_parent
from emulator.engines.process import sealed_file
from emulator.engines.verdict import EntryFacts, ProgramFacts, Verdict, judge
from emulator.model.operators.caches import AttentionCost
from emulator.model.profile import Profile
from emulator.model.work import RowCost

NUMBER = struct.Struct("<Q")
VERIFIER_NICENESS = 5
"""It yields to the bus, as engines do."""


def encode_verdict(verdict: Verdict) -> bytes:
    """A verdict as it travels."""
    return json.dumps(verdict).encode()


def decode_verdict(data: bytes | memoryview) -> Verdict:
    """The inverse of `encode_verdict`."""
    number, status, message, facts = json.loads(bytes(data))
    return Verdict(number, Status(status), message, None if facts is None else _facts(*facts))


def _facts(constants: list[int], entries: list[list[Any]]) -> ProgramFacts:
    def entry(fields: list[Any]) -> EntryFacts:
        workspace, inputs, states, outputs, scratch, commands, ticks, by_rows = fields
        places = tuple((at, size) for at, size in outputs)
        costs = tuple(RowCost(position, times, AttentionCost(*cost)) for position, times, cost in by_rows)
        return EntryFacts(workspace, tuple(inputs), tuple(states), places, scratch, commands, ticks, costs)

    return ProgramFacts(tuple(constants), tuple(map(entry, entries)))


def encode_profile(profile: Profile) -> str:
    """The figures of a profile as a worker's argument."""
    return json.dumps({name: getattr(profile, name) for name in Profile.__slots__ if name != "sources"})


def decode_profile(text: str) -> Profile:
    """The inverse of `encode_profile`; where the figures come from stays behind."""
    figures = json.loads(text)
    figures["tiles"] = tuple(map(tuple, figures["tiles"]))
    return Profile(**figures, sources={})


def serve(arguments: Sequence[str], judged: Callable[[int, memoryview, Profile], Verdict]) -> None:
    """Answer what comes until the other side closes. `arguments`: socket (a descriptor), parent's id, profile."""
    channel_fd, parent = (int(text) for text in arguments[:2])
    profile = decode_profile(arguments[2])
    die_with_parent(parent)
    os.nice(VERIFIER_NICENESS)
    with socket.socket(fileno=channel_fd) as channel:
        while True:
            message, fds, _, _ = socket.recv_fds(channel, NUMBER.size, 1)
            if not message:
                return
            try:
                image = memoryview(mmap.mmap(fds[0], 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
            finally:
                os.close(fds[0])
            (number,) = NUMBER.unpack(message)
            answer = sealed_file("npu-verdict", encode_verdict(judged(number, image, profile)))
            try:
                socket.send_fds(channel, [message], [answer])
            finally:
                os.close(answer)


def main(arguments: Sequence[str]) -> None:
    """Entry point of the process."""
    serve(arguments, judge)
