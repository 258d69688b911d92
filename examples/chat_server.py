"""Answer many people at once: every step of the model takes a token of each conversation that is going on.

$ python examples/chat_server.py smollm2.gguf
$ curl --no-buffer "http://127.0.0.1:8000/?max_tokens=60&temperature=0.7" --data "What is the capital of France?"

Another port than 8000 may follow the file's name. Needs `pip install 'npu-sdk[chat]'`.

Conversations come and go between any two steps. Of those that are going on, up to 8 have a token in a step, in turns.
New questions are read between steps, 32 tokens at a time, so that answers wait for one such run at most. A conversation
begins when its longest answer fits into the model's memory beside the others; before, it waits in line.

A slow reader delays nobody: when 16 pieces of an answer wait for it, steps pass it over until it reads on. When it has
read nothing for a minute it is dropped. What a conversation had is free before the next step, also when it was left.

This is an example for a machine of one's own: it does not know its users, and speaks no TLS.
"""

import asyncio
import contextlib
import itertools
import socket
import sys
import urllib.parse
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

import sdk
from sdk.chat.metadata import read_metadata
from sdk.chat.sampling import Candidates, Sampler, Sampling
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.text_stream import TextStream
from sdk.chat.vocabulary import Vocabulary

ADDRESS = "127.0.0.1"
ROWS, CHUNK_TOKENS, CANDIDATES = 8, 32, 64
SHAPES = {"input_ids": [(1, CHUNK_TOKENS), (1, 1), (ROWS, 1)]}
MOST_TOKENS = 256
"""Of an answer, unless the client wants fewer."""
WAITING_PIECES, SOCKET_BYTES, PATIENCE_S = 16, 16 << 10, 60.0
MOST_QUESTION_BYTES = 64 << 10
MOST_TALKS = 128
"""That are going on at once; more wait in line."""
BLOCK_TOKENS = 16
"""State memory is taken in such blocks."""

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)


class Talk:
    """One conversation: what is still to be read of its question, and what was said that nobody has fetched."""

    def __init__(self, prompt: list[int], most: int, sampler: Sampler, words: Vocabulary) -> None:
        self.unread = prompt
        self.most = most
        self.tokens = len(prompt) + most
        self.state: Any = None
        self.said: list[int] = []
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.over = False
        self._sampler = sampler
        self._words = words
        self._text = TextStream(words)

    @property
    def blocks(self) -> int:
        return -(-self.tokens // BLOCK_TOKENS)

    @property
    def keeps_up(self) -> bool:
        return self.pieces.qsize() < WAITING_PIECES

    def hear(self, candidates: Candidates) -> None:
        """The model has said what may come next: choose, and pass it on. None follows the last piece."""
        token = self._sampler.choose(candidates)
        ends = token in self._words.end_ids
        if not ends:
            self.said.append(token)
            self._pass_on(self._text.push(token))
        if ends or len(self.said) == self.most:
            self._pass_on(self._text.finish())
            self.end()

    def end(self) -> None:
        self.over = True
        self.pieces.put_nowait(None)

    def _pass_on(self, piece: str) -> None:
        if piece:
            self.pieces.put_nowait(piece)


class Talker:
    """The model, and the loop that all conversations share: one task has `run`, others call `ask`."""

    def __init__(self, model: Any, words: Vocabulary, template: ChatTemplate) -> None:
        self._model = model
        self._words = words
        self._template = template
        token_bytes = sum(state.bytes_per_token for state in model.states)
        self.free_blocks = model.state_memory_free_bytes // (BLOCK_TOKENS * token_bytes)
        with model.state() as state:
            self._context = state.max_tokens
        self._waiting: deque[Talk] = deque()
        self._reading: deque[Talk] = deque()
        self._answering: deque[Talk] = deque()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None

    def ask(self, question: str, most: int, sampler: Sampler) -> AsyncGenerator[str, None]:
        """The answer piece by piece. Raises ValueError for what can never fit."""
        prompt = self._words.encode(self._template.render([Message("user", question)]))
        talk = Talk(prompt, most, sampler, self._words)
        if talk.tokens > self._context or most < 1:
            raise ValueError(f"{len(prompt)} tokens and {most} of an answer: there is room for {self._context}")
        return self._pieces(talk)

    async def _pieces(self, talk: Talk) -> AsyncGenerator[str, None]:
        self._waiting.append(talk)
        self._news.set()
        try:
            while self._failure is None and (piece := await talk.pieces.get()) is not None:
                self._news.set()  # it may have been passed over
                yield piece
        finally:
            talk.over = True  # whoever asked may have left
            self._news.set()
        if self._failure is not None:
            raise ConnectionAbortedError("the device has failed") from self._failure

    async def run(self) -> None:
        """Answer until cancelled. What the device raises ends all conversations, and this."""
        try:
            while True:
                self._news.clear()
                self._part()
                self._admit()
                has_read = await self._read_chunk()
                has_said = await self._step()
                if not has_read and not has_said:
                    await self._news.wait()
        except BaseException as error:
            self._failure = error
            for talk in (*self._waiting, *self._reading, *self._answering):
                talk.end()
            raise

    def _part(self) -> None:
        """Free what conversations had that are over. No run works on it, since this task awaited them all."""
        for line in (self._waiting, self._reading, self._answering):
            for talk in [talk for talk in line if talk.over]:
                line.remove(talk)
                if talk.state is not None:
                    talk.state.free()
                    self.free_blocks += talk.blocks

    def _admit(self) -> None:
        """Those who waited longest, as far as their longest answers fit."""
        while self._waiting and self._waiting[0].blocks <= self.free_blocks and self._has_place():
            talk = self._waiting.popleft()
            talk.state = self._model.state(max_tokens=talk.tokens)
            self.free_blocks -= talk.blocks
            self._reading.append(talk)

    def _has_place(self) -> bool:
        return len(self._reading) + len(self._answering) < MOST_TALKS

    async def _read_chunk(self) -> bool:
        """Have the model read a piece of a question, in turns; whether there was one."""
        if not self._reading:
            return False
        talk = self._reading.popleft()
        piece, talk.unread = talk.unread[:CHUNK_TOKENS], talk.unread[CHUNK_TOKENS:]
        (self._reading if talk.unread else self._answering).append(talk)
        out = await self._model.run_async({"input_ids": np.array([piece])}, state=talk.state)
        if not talk.unread:
            talk.hear(Candidates(out["logits"][0], out["token_ids"][0]))
        return True

    async def _step(self) -> bool:
        """A token more for those whose turn it is; whether there were any."""
        ready = (talk for talk in self._answering if talk.keeps_up and not talk.over)
        turn = list(itertools.islice(ready, ROWS))
        if not turn:
            return False
        for talk in turn:
            self._answering.remove(talk)
            self._answering.append(talk)
        ids = np.array([[talk.said[-1]] for talk in turn])
        out = await self._model.run_async({"input_ids": ids}, states=[talk.state for talk in turn])
        for talk, scores, tokens in zip(turn, out["logits"], out["token_ids"], strict=True):
            talk.hear(Candidates(scores, tokens))
        return True


class Server:
    """HTTP/1.1: a question is the body of a POST, its answer comes in chunks. One request a connection."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        # who does not read is to be noticed, not hidden by buffers
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._answer(reader, writer)
            writer.close()
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                question, options = await _request(reader)
            sampling = Sampling(float(options.get("temperature", 0)))
            sampler = Sampler(sampling, int(options.get("seed", 0)))
            pieces = self._talker.ask(question, int(options.get("max_tokens", MOST_TOKENS)), sampler)
        except (ValueError, asyncio.LimitOverrunError) as error:
            writer.write(f"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{error}\n".encode())
            return
        writer.write(HEAD)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                data = piece.encode()
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
        writer.write(b"0\r\n\r\n")


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """A request's body, and the options in its address. Raises ValueError for what is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, rest = head[0].partition(" ")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    size = int(fields.get("content-length", 0))
    if method != "POST" or not 0 < size <= MOST_QUESTION_BYTES:
        raise ValueError(f"POST a question of 1 to {MOST_QUESTION_BYTES} bytes, with its Content-Length")
    query = urllib.parse.urlsplit(rest.partition(" ")[0]).query
    return (await reader.readexactly(size)).decode("utf-8", "replace"), dict(urllib.parse.parse_qsl(query))


async def main(path: str, port: int = 8000) -> None:
    metadata = read_metadata(path)
    words = Vocabulary(metadata)
    with sdk.Device() as dev:
        graph = sdk.read_gguf(path, logits=f"top-{CANDIDATES}")
        model = dev.load(graph, shapes=SHAPES, state_memory="256MiB", idle_rows=True)
        talker = Talker(model, words, ChatTemplate(metadata, words))
        server = await asyncio.start_server(Server(talker).serve, ADDRESS, port)
        port = server.sockets[0].getsockname()[1]
        print(f"listening at http://{ADDRESS}:{port}; Ctrl-C ends", flush=True)
        try:
            await talker.run()
        finally:
            server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
