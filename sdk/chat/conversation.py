"""A conversation: messages in, answers out piece by piece, all that was said kept in the device's memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from sdk.chat.figures import Figures
from sdk.chat.sampling import Sampler
from sdk.chat.sequence import Finish, Generation, TokenSequence
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.text_stream import TextStream
from sdk.chat.vocabulary import Vocabulary


class Conversation:
    """Messages that a model answers. Only what is new is read: the state has the rest."""

    def __init__(
        self, sequence: TokenSequence, vocabulary: Vocabulary, template: ChatTemplate, *, system: str | None = None
    ) -> None:
        self.sequence = sequence
        self.messages: list[Message] = []
        self._vocabulary = vocabulary
        self._template = template
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget what was said; the system's message stays. Device memory is given back with the next question."""
        self.messages = [] if self._system is None else [Message("system", self._system)]

    def ask(self, text: str, sampler: Sampler, *, most: int | None = None) -> Answer:
        """The answer to a message, at most `most` tokens long. Both become part of the conversation when it ends.

        Raises ContextFull, TemplateError.
        """
        asked = [*self.messages, Message("user", text)]
        prompt = self._tokens(asked)
        generation = self.sequence.follow(prompt, sampler, ends=self._vocabulary.end_ids, most=most)
        return Answer(self, asked, generation, len(prompt), TextStream(self._vocabulary))

    def _tokens(self, messages: list[Message]) -> list[int]:
        tokens = self._vocabulary.encode(self._template.render(messages))
        begin = self._vocabulary.begin_id
        if self._vocabulary.begins and begin is not None and tokens[:1] != [begin]:  # many templates write it
            tokens.insert(0, begin)
        return tokens


class Answer:
    """An iterator over the pieces of an answer's text. The rest is whole when it has ended."""

    def __init__(
        self,
        conversation: Conversation,
        asked: list[Message],
        generation: Generation,
        prompt_tokens: int,
        stream: TextStream,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        """Of the whole conversation, before the answer."""
        self.tokens = 0
        """Of the answer, the end not counted."""
        self.text = ""
        self._conversation = conversation
        self._asked = asked
        self._generation = generation
        self._stream = stream
        self._pieces = self._run()

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None before."""
        return self._generation.finish

    @property
    def figures(self) -> Figures:
        """What it took."""
        return self._generation.figures

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def stop(self) -> str:
        """End it here; what was said stays said. Returns the last piece: U+FFFD for half a character, else nothing."""
        if self.finish is not None:
            return ""
        self._pieces.close()
        self._generation.stop()
        return self._end()

    def _run(self) -> Generator[str, None, None]:
        for token in self._generation:
            self.tokens += 1
            piece = self._stream.push(token)
            self.text += piece
            if piece:
                yield piece
        piece = self._end()
        if piece:
            yield piece

    def _end(self) -> str:
        piece = self._stream.finish()
        self.text += piece
        if self.tokens or self.finish is Finish.END:
            self._conversation.messages = [*self._asked, Message("assistant", self.text)]
        return piece
