"""The example of a chat server: conversations join and leave at every step; each is answered as if it were alone."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk.chat import default_model
from sdk.chat.metadata import read_metadata
from sdk.chat.sampling import Sampler, Sampling
from sdk.chat.template import ChatTemplate
from sdk.chat.vocabulary import Vocabulary
from tests.support.needs import module_of_extra, require_all_there
from tests.support.paths import ROOT
from tests.support.pipes import read_line
from tests.support.rigs import process_rig
from tests.support.waiting import PATIENCE_S

module_of_extra("gguf", "chat")
module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")

from tests.support.talking_net import write_gguf  # noqa: E402 - it needs the extra

SCRIPT = ROOT / "examples" / "chat_server.py"
BLOCK_BYTES = 16 * 2 * 2 * 64 * 4
"""Of the small net, which has one layer of two heads of keys."""
Asked = tuple[str, dict[str, Any]]
"""A question and its options."""


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("chat_server", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chat_server = _example()


class Watched:
    """A model whose runs are counted."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.runs: list[tuple[str, int]] = []
        """("chunk", tokens) or ("step", rows)."""
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def run_async(self, inputs: Any, **states: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        rows = states.get("states")
        self.runs.append(("chunk", inputs["input_ids"].shape[1]) if rows is None else ("step", len(rows)))
        return await self._model.run_async(inputs, **states)


class Served:
    """A server in this loop."""

    def __init__(self, model: Watched, talker: Any, port: int) -> None:
        self.model = model
        self.talker = talker
        self.port = port

    async def ask(self, question: str, **options: Any) -> str:
        """A whole answer."""
        return "".join([piece async for piece in pieces(self.port, question, options)])

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                await asyncio.sleep(0.001)


async def pieces(port: int, question: str, options: dict[str, Any]) -> AsyncGenerator[str, None]:
    """A client: the pieces of an answer as they come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        body = question.encode()
        writer.write(b"POST /?%b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (query.encode(), len(body), body))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"\r\n\r\n")
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size)).decode()
            assert await reader.readexactly(2) == b"\r\n"
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(model: Any, file: Path) -> AsyncIterator[Served]:
    """A server of the example's; all memory is free at its end."""
    metadata = read_metadata(file)
    words, watched = Vocabulary(metadata), Watched(model)
    whole = model.state_memory_free_bytes
    talker = chat_server.Talker(watched, words, ChatTemplate(metadata, words))
    server = await asyncio.start_server(chat_server.Server(talker).serve, "127.0.0.1", 0)
    loop = asyncio.create_task(talker.run())
    served = Served(watched, talker, server.sockets[0].getsockname()[1])
    try:
        yield served
        if watched.failure is None:
            await served.until(lambda: model.state_memory_free_bytes == whole)
    finally:
        loop.cancel()
        server.close()
        await asyncio.gather(loop, return_exceptions=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("small") / "net.gguf")


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig(kernels="numpy") as rig, rig.device() as device:
        yield device


def loaded(device: sdk.Device, file: Path, memory: int | str) -> Any:
    graph = sdk.read_gguf(file, logits=f"top-{chat_server.CANDIDATES}")
    return device.load(graph, shapes=chat_server.SHAPES, state_memory=memory, idle_rows=True)


@pytest.fixture(scope="module")
def model(device: sdk.Device, file: Path) -> Any:
    return loaded(device, file, 512 * BLOCK_BYTES)


def run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(150):
            await test

    asyncio.run(limited())


def sixteen(questions: tuple[str, ...], longest: int) -> list[Asked]:
    """Conversations of different lengths, every third of which chance has a part in."""
    asked = []
    for number in range(16):
        options: dict[str, Any] = {"max_tokens": 3 + number * (longest - 3) // 15}
        if number % 3 == 0:
            options |= {"temperature": 0.8, "seed": number}
        asked.append((f"{questions[number % len(questions)]}" + " the world" * (number % 5), options))
    return asked


async def answered_as_alone(served: Served, asked: list[Asked]) -> None:
    """All at once, clients joining one after the other, gives the answers that each gives alone."""
    alone = [await served.ask(question, **options) for question, options in asked]
    assert len(set(alone)) > len(alone) // 2, "answers all alike prove nothing"
    assert {rows for kind, rows in served.model.runs if kind == "step"} == {1}
    served.model.runs.clear()

    async def joining(number: int) -> str:
        await served.until(lambda: len(served.model.runs) >= number)
        question, options = asked[number]
        return await served.ask(question, **options)

    together = await asyncio.gather(*map(joining, range(len(asked))))
    assert together == alone
    steps = {rows for kind, rows in served.model.runs if kind == "step"}
    assert 8 in steps and len(steps) > 3
    assert all(tokens <= chat_server.CHUNK_TOKENS for kind, tokens in served.model.runs if kind == "chunk")


def test_16_conversations_at_once_are_answered_as_each_is_alone(model: Any, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            await answered_as_alone(served, sixteen(("Hello", "in the world", "12 and 12"), 90))

    run(test())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_16_conversations_with_smollm2_are_answered_as_each_is_alone(device: sdk.Device) -> None:
    require_all_there(default_model.missing())
    questions = ("What is the capital of France?", "Write a poem.", "Why is the sky blue?", "Hi!")

    async def test() -> None:
        model = loaded(device, default_model.path(), "256MiB")
        async with serving(model, default_model.path()) as served:
            await answered_as_alone(served, sixteen(questions, 40))

    asyncio.run(test())


def test_who_is_being_answered_waits_for_one_piece_of_a_long_question_at_most(model: Any, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            first = asyncio.create_task(served.ask("Hello", max_tokens=200))
            await served.until(lambda: ("step", 1) in served.model.runs)
            await asyncio.gather(*(served.ask("the world " * 60, max_tokens=2) for _ in range(3)))
            assert not first.done()
            runs = [kind for kind, _ in served.model.runs]
            since = runs[runs.index("step") :]
            assert since.count("chunk") >= 12
            assert ("chunk", "chunk") not in itertools.pairwise(since)
            await first

    run(test())


def test_a_client_that_leaves_takes_its_memory_with_it_and_nobody_else(model: Any, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            whole = await served.ask("Hi", max_tokens=120)
            staying = asyncio.create_task(served.ask("Hi", max_tokens=120))
            blocks = served.talker.free_blocks
            leaving = pieces(served.port, "the world", {"max_tokens": 900})
            await anext(leaving)
            assert served.talker.free_blocks < blocks
            await leaving.aclose()
            assert await staying == whole
            await served.until(lambda: served.talker.free_blocks == blocks)
            assert sum(kind == "step" for kind, _ in served.model.runs) < 900

    run(test())


def test_who_does_not_read_is_passed_over_and_goes_on_when_it_reads(model: Any, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            whole = await served.ask("the world", max_tokens=150)
            slow = served.talker.ask("the world", 150, Sampler(Sampling()))
            begun = [await anext(slow)]
            others = [await served.ask("Hello", max_tokens=100) for _ in range(2)]
            assert others[0] == others[1]
            (talk,) = served.talker._answering
            assert not talk.keeps_up and len(talk.said) < 100
            assert "".join([*begun, *[piece async for piece in slow]]) == whole

    run(test())


def test_who_does_not_read_for_as_long_as_patience_lasts_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talkative:
        ended = False

        async def ask(self, *_: object) -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield "more " * 100_000
            finally:
                self.ended = True

    async def test() -> None:
        talkative = Talkative()
        server = await asyncio.start_server(chat_server.Server(talkative).serve, "127.0.0.1", 0)
        silent = socket.create_connection(server.sockets[0].getsockname())
        with silent:
            silent.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nHi")
            while not talkative.ended:
                await asyncio.sleep(0.01)
        server.close()

    monkeypatch.setattr(chat_server, "PATIENCE_S", 0.1)
    run(test())


def test_conversations_that_do_not_fit_together_wait_and_all_are_answered(device: sdk.Device, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            alone = await served.ask("Hello", max_tokens=60)
            served.model.runs.clear()
            answers = await asyncio.gather(*(served.ask("Hello", max_tokens=60) for _ in range(7)))
            assert set(answers) == {alone}
            assert max(rows for kind, rows in served.model.runs if kind == "step") == 2

    model = loaded(device, file, 11 * BLOCK_BYTES)
    run(test())
    model.close()


@pytest.mark.parametrize(
    ("request_head", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "POST a question"),
        (b"POST / HTTP/1.1\r\n\r\n", "with its Content-Length"),
        (b"POST /?max_tokens=0 HTTP/1.1\r\nContent-Length: 2\r\n\r\nHi", "there is room for 1024"),
        (b"POST /?max_tokens=1020 HTTP/1.1\r\nContent-Length: 2\r\n\r\nHi", "there is room for 1024"),
        (b"POST /?temperature=-1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nHi", "temperature=-1.0"),
        (b"POST / HTTP/1.1\r\nX: " + bytes(100_000), "limit"),
    ],
)
def test_what_is_no_question_is_refused_and_the_server_goes_on(
    model: Any, file: Path, request_head: bytes, message: str
) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request_head)
            answer = (await reader.read()).decode()
            assert answer.startswith("HTTP/1.1 400 ") and message in answer
            writer.close()
            assert await served.ask("Hi", max_tokens=3)

    run(test())


def test_when_the_device_fails_all_answers_are_cut_short(model: Any, file: Path) -> None:
    async def test() -> None:
        async with serving(model, file) as served:
            asked = [asyncio.create_task(served.ask("Hello", max_tokens=500)) for _ in range(3)]
            await served.until(lambda: ("step", 3) in served.model.runs)
            served.model.failure = sdk.DeviceLost("gone")
            ends = await asyncio.gather(*asked, served.ask("Hi"), return_exceptions=True)
            assert all(isinstance(end, (ConnectionError, EOFError, ValueError)) for end in ends)

    run(test())


def test_the_script_answers_and_ends_at_a_signal(file: Path) -> None:
    assert "$ python examples/chat_server.py smollm2.gguf\n" in SCRIPT.read_text("utf-8")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(file), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NPU_DEVICE": "emulator"},
    )
    try:
        line = read_line(process.stdout)
        assert line.startswith("listening at http://127.0.0.1:"), process.communicate(timeout=PATIENCE_S)
        port = int(line.partition(";")[0].rpartition(":")[2])

        async def asked() -> list[str]:
            return [piece async for piece in pieces(port, "Hello", {"max_tokens": 12})]

        assert asyncio.run(asked())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert not errors
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
