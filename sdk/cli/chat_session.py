"""The talk of `npuctl chat`: prompts in, answers out as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sdk.chat.conversation import Answer, Conversation
from sdk.chat.figures import Figures
from sdk.chat.sampling import Sampler
from sdk.chat.sequence import ContextFull, Finish
from sdk.cli.chat_report import Setting
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.interrupts import StopButton

PROMPT = "> "
_COMMANDS = {
    "/exit": "ends (so does Ctrl-D)",
    "/reset": "forgets what was said",
    "/stats": "shows what the device did",
    "/help": "shows this",
}
_SHOWN_CONTROLS = "\t\n"
_UNPRINTABLE = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _SHOWN_CONTROLS}
"""A model's words must not move the cursor or colour the terminal."""


class Session:
    """One conversation with somebody, or with a file of prompts."""

    def __init__(
        self, frame: Frame, conversation: Conversation, setting: Setting, *, most_tokens: int, most_context: int
    ) -> None:
        self._frame = frame
        self._conversation = conversation
        self._setting = setting
        self._most_tokens = most_tokens
        self._most_context = most_context
        self._figures = Figures()
        self._on_terminal = sys.stdout.isatty()

    def answer(self, prompt: str, stop: StopButton | None = None) -> None:
        """Print an answer as it comes; with `stop`, until that is pressed. Raises Failure for a full context."""
        try:
            answer = self._conversation.ask(prompt, self._sampler, most=self._most_tokens)
        except ContextFull as error:
            raise Failure(error.message, slug=error.code, remedy=self._more_room()) from error
        for piece in answer:
            self._write(piece)
            if stop is not None and stop.pressed:
                self._write(answer.stop())
        self._write("\n")
        self._figures += answer.figures
        self._frame.emit(self._setting.address, answer=self._setting.entry(answer, prompt, self._conversation.sequence))
        self._explain(answer)

    def listen(self) -> None:
        """Answer what is typed, until Ctrl-D or /exit. Ctrl-C ends an answer."""
        stop = StopButton()
        self._frame.note("Ctrl-C stops an answer; /help shows what else there is, Ctrl-D ends")
        for line in _typed(stop):
            if line in _COMMANDS:
                if not self._obey(line):
                    return
            elif line.startswith("/") and len(line.split()) == 1:
                self._frame.note(f"there is no {line}; /help shows what there is")
            elif line:
                try:
                    self.answer(line, stop)
                except Failure as error:
                    self._frame.note(f"{error} ({error.remedy})")

    def read(self) -> None:
        """Answer every line of what is piped in. Raises Failure for a full context."""
        for line in sys.stdin:
            prompt = line.strip()
            if prompt in _COMMANDS:
                if not self._obey(prompt):
                    return
            elif prompt:
                self.answer(prompt)

    def show_figures(self) -> None:
        """What the device did, in lines for people."""
        for line in self._setting.lines(self._figures, self._conversation.sequence):
            self._frame.say(line)

    @property
    def _sampler(self) -> Sampler:
        return self._setting.sampler

    def _obey(self, command: str) -> bool:
        """Whether to go on."""
        if command == "/reset":
            self._conversation.reset()
            self._frame.note("all that was said is forgotten")
        elif command == "/stats":
            self.show_figures()
        elif command == "/help":
            for name, what in _COMMANDS.items():
                self._frame.note(f"{name} {what}")
        return command != "/exit"

    def _write(self, text: str) -> None:
        if text and not self._frame.as_json:
            self._frame.write(text.translate(_UNPRINTABLE) if self._on_terminal else text)

    def _explain(self, answer: Answer) -> None:
        if answer.finish is Finish.TOKENS:
            self._frame.note(f"stopped after {answer.tokens:,} tokens; --max-tokens allows more")
        elif answer.finish is Finish.CONTEXT:
            context = self._conversation.sequence.context
            self._frame.note(f"stopped: the context of {context:,} tokens is full; {self._more_room()}")

    def _more_room(self) -> str:
        """What can be done: to begin anew helps where something was said before."""
        ways = []
        if any(message.role == "assistant" for message in self._conversation.messages):
            ways.append("/reset begins anew")
        if self._conversation.sequence.context < self._most_context:
            ways.append(f"--context {self._most_context} is the most that the model takes")
        return ", ".join(ways) or "say it in fewer words"


def _typed(stop: StopButton) -> Iterator[str]:
    """Lines from the terminal, stripped, until Ctrl-D. Ctrl-C drops a line."""
    import readline  # noqa: F401 - gives input() its keys and history

    while True:
        try:
            with stop.reading():
                line = _line()
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        else:
            yield line.strip()


def _line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)  # stdout is for answers
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
