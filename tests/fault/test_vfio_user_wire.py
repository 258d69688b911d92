"""A real emulator process, spoken to in bytes written by hand: what QEMU says, and what nobody should say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver_shim.protocol import vfio_user as vu
from tests.fuzz.device import SLOW_FACTOR, SLOW_TIMEOUT_S
from tests.support.bus_server import RawClient
from tests.support.wire import (
    CONVERSATION,
    OUR_VERSION,
    QEMU_VERSION,
    REFUSED,
    EmulatorProcess,
    Exchange,
    Files,
    emulator_process,
    receive,
)

IDENTITY = CONVERSATION["identity, the register at 0"]
READ_BACK = CONVERSATION["what the posted writes left"]
BETWEEN_PARTS_S = 1e-3
"""Long enough for the server to find the parts one by one, most of the time."""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with emulator_process(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    yield files
    files.close()


@pytest.fixture(autouse=True)
def nothing_leaks(emulator: EmulatorProcess) -> Iterator[None]:
    before = emulator.open_files()
    yield
    assert emulator.open_files() == before, "a descriptor leaked"


def say(client: RawClient, files: Files, exchanged: Exchange) -> None:
    """Send a request; its reply must come, byte for byte."""
    client.send_bytes(exchanged.request, files.of(exchanged))
    if exchanged.reply is not None:
        assert receive(client, exchanged.reply) == exchanged.reply


def say_in_two(client: RawClient, files: Files, exchanged: Exchange, cut: int) -> None:
    """The same, in two parts; files go with the first."""
    client.send_bytes(exchanged.request[:cut], files.of(exchanged))
    time.sleep(BETWEEN_PARTS_S)
    say(client, files, exchanged._replace(request=exchanged.request[cut:], file=""))


def converse(client: RawClient, files: Files) -> None:
    for name, exchanged in CONVERSATION.items():
        client.send_bytes(exchanged.request, files.of(exchanged))
        if exchanged.reply is not None:
            assert receive(client, exchanged.reply) == exchanged.reply, name


def test_what_qemu_says_is_answered_byte_for_byte(emulator: EmulatorProcess, files: Files) -> None:
    with emulator.connect() as client:
        converse(client, files)


def test_all_that_qemu_says_may_come_at_once(emulator: EmulatorProcess, files: Files) -> None:
    with RawClient.connect(emulator.path) as client:
        client.send_bytes(QEMU_VERSION + b"".join(e.request for e in CONVERSATION.values() if not e.file))
        replies = OUR_VERSION + b"".join(e.reply for e in CONVERSATION.values() if not e.file and e.reply)
        unmapped = CONVERSATION["taking that back"]
        assert unmapped.reply is not None
        replies = replies.replace(unmapped.reply, bytes.fromhex("1300 0300 10000000 21000000 02000000"))
        assert receive(client, replies) == replies


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_byte_for_byte_and_changes_nothing(
    emulator: EmulatorProcess, files: Files, name: str
) -> None:
    with emulator.connect() as client:
        converse(client, files)
        say(client, files, REFUSED[name])
        say(client, files, READ_BACK)
        say(client, files, CONVERSATION["command: memory, bus master"])
        say(client, files, CONVERSATION["a range that ends at 2**64"])
        say(client, files, CONVERSATION["taking that back"])


def test_messages_may_be_split_at_any_byte(emulator: EmulatorProcess, files: Files) -> None:
    map_it, unmap_it = CONVERSATION["a range that ends at 2**64"], CONVERSATION["taking that back"]
    with emulator.connect() as client:
        for name in ("vendor and device", "an eventfd for vector 1"):
            for cut in range(1, len(CONVERSATION[name].request)):
                say_in_two(client, files, CONVERSATION[name], cut)
        for cut in range(1, len(map_it.request)):
            say_in_two(client, files, map_it, cut)
            say(client, files, unmap_it)
        for cut in range(1, len(unmap_it.request)):
            say(client, files, map_it)
            say_in_two(client, files, unmap_it, cut)


def test_messages_may_come_byte_by_byte(emulator: EmulatorProcess) -> None:
    with RawClient.connect(emulator.path) as client:
        for value in QEMU_VERSION:
            client.send_bytes(bytes([value]))
            time.sleep(BETWEEN_PARTS_S)
        assert receive(client, OUR_VERSION) == OUR_VERSION


@pytest.mark.parametrize("size", ["00000000", "0f000000", "21001000", "ffffffff"])
def test_a_header_of_impossible_size_ends_the_client_that_sent_it(
    emulator: EmulatorProcess, files: Files, size: str
) -> None:
    """At least the header's 16 bytes, at most 16 + 16 + 1 MiB = 0x100020."""
    with emulator.connect() as client:
        client.send_bytes(bytes.fromhex(f"0100 0900 {size} 00000000 00000000"))
        assert client.receive() is None
    with emulator.connect() as following:
        say(following, files, CONVERSATION["vendor and device"])


@pytest.mark.parametrize("count", [vu.MAX_FDS, vu.MAX_FDS + 1, 64])
def test_files_are_closed_however_many_come(emulator: EmulatorProcess, files: Files, count: int) -> None:
    """As many as we said we take: the message is refused. One more: the stream cannot be trusted any more."""
    exchanged = CONVERSATION["memory"]
    with emulator.connect() as client:
        client.send_bytes(exchanged.request, files.of(exchanged) * count)
        if count == vu.MAX_FDS:
            expected = bytes.fromhex("1000 0200 10000000 21000000 16000000")
            assert receive(client, expected) == expected
        else:
            assert client.receive() is None


def test_files_piled_up_on_an_unfinished_message_end_their_sender(emulator: EmulatorProcess, files: Files) -> None:
    exchanged = CONVERSATION["memory"]
    with emulator.connect() as client:
        for at in range(vu.MAX_FDS + 1):
            client.send_bytes(exchanged.request[at : at + 1], files.of(exchanged))
            time.sleep(BETWEEN_PARTS_S)
        assert client.receive() is None


# --- altered -----------------------------------------------------------------------------------------------------

REQUESTS = [*CONVERSATION.values(), *REFUSED.values()]


@st.composite
def altered_messages(draw: st.DrawFn) -> tuple[bytes, str]:
    """A message of those above with a few bytes changed, or cut, or doubled; and what goes with it."""
    exchanged = draw(st.sampled_from(REQUESTS))
    message = bytearray(exchanged.request)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(message) - 1))
        message[at] = draw(st.sampled_from((0, 1, 2, 0x0F, 0x10, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
    if draw(st.integers(0, 9)) == 0:
        del message[draw(st.integers(1, len(message))) :]
    return bytes(message), draw(st.sampled_from((exchanged.file, "", "memory", "eventfd")))


def test_altered_messages_end_at_worst_the_client_that_sent_them(emulator: EmulatorProcess, files: Files) -> None:
    _alter(emulator, files, 200)


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
def test_many_altered_messages(emulator: EmulatorProcess, files: Files) -> None:
    _alter(emulator, files, 200 * SLOW_FACTOR, derandomize=settings().derandomize)


def _alter(emulator: EmulatorProcess, files: Files, examples: int, *, derandomize: bool = True) -> None:
    before = emulator.open_files()

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(altered_messages(), min_size=1, max_size=12))
    def body(messages: list[tuple[bytes, str]]) -> None:
        with emulator.connect() as client:
            try:
                for message, file in messages:
                    client.send_bytes(message, files.of(Exchange(message, None, file)))
            except OSError:  # it hung up, which is its right
                pass
        assert emulator.open_files() == before

    body()
    with emulator.connect() as following:
        converse(following, files)
    assert Path(f"/proc/{emulator.pid}").exists()
    assert os.listdir(f"/proc/{emulator.pid}/fd")
