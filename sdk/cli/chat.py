"""`npuctl chat`: talk to a language model on a device."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdk.cli import timeouts
from sdk.cli.bounded_number import bounded
from sdk.cli.device_selection import device_option, open_for_work
from sdk.cli.frame import Frame
from sdk.cli.interrupts import left_to_the_work
from sdk.cli.verb import verb

if TYPE_CHECKING:
    from sdk.chat.chat_model import ChatModel
    from sdk.chat.sampling import Sampler
    from sdk.cli.chat_session import Session
    from sdk.device import Device

_MOST_TOKENS = 512
_COUNT = bounded(int, "a whole number from 1 on", least=1)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _limit_s(options: Mapping[str, Any]) -> float:
    """A talk lasts as long as it does."""
    return timeouts.WORK_S if options["prompt"] is not None else math.inf


@verb("chat", limit_s=_limit_s, around=left_to_the_work)
@click.argument("model_path", metavar="[MODEL.gguf]", type=_FILE, required=False)
@device_option
@click.option("--prompt", metavar="WORDS", help="Answer this and end.")
@click.option("--system", metavar="WORDS", help="What the model is told before all else.")
@click.option("--template", "template_path", metavar="FILE", type=_FILE, help="A chat template of your own (Jinja).")
@click.option("--max-tokens", type=_COUNT, metavar="N", default=_MOST_TOKENS, show_default=True, help="Of an answer.")
@click.option(
    "--temperature",
    type=bounded(float, "0 or more", least=0, most=1e6),
    metavar="T",
    default=0.0,
    help="0 (default) always takes the best token; more is more varied.",
)
@click.option("--top-k", type=_COUNT, metavar="K", help="Choose among the K best tokens (default: 64).")
@click.option(
    "--top-p",
    type=bounded(float, "a share above 0, at most 1", least=0, most=1, above=True),
    metavar="P",
    default=1.0,
    help="Choose among the best tokens that have this share.",
)
@click.option(
    "--repetition-penalty",
    type=bounded(float, "a number above 0, e.g. 1.1", least=0, most=1e6, above=True),
    metavar="R",
    default=1.0,
    help="Above 1, what was said becomes less likely.",
)
@click.option("--seed", type=bounded(int, "a whole number, 0 or more", least=0), metavar="N", help="Repeats a run.")
@click.option("--context", type=_COUNT, metavar="N", help="Tokens of the whole conversation (default: 2048).")
@click.option("--stats/--no-stats", default=True, help="At the end, say what the device did.")
def command(
    frame: Frame,
    model_path: Path | None,
    wanted: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    template_path: Path | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    repetition_penalty: float,
    seed: int | None,
    context: int | None,
    stats: bool,
) -> None:
    """Talk to a language model that runs on a device, its memory of the talk included.

    Without MODEL.gguf it is SmolLM2-135M-Instruct. Piped in, every line is a prompt. Answers go to stdout, all else to
    stderr; with --json every answer is a line.
    """
    from sdk.chat.chat_model import CANDIDATES, ChatModel, ContextTooLarge
    from sdk.chat.default_model import path as default_path
    from sdk.chat.sampling import Sampler, Sampling

    frame.speak_on_stderr()
    file = model_path or default_path()
    template = template_path.read_text("utf-8", "replace") if template_path else None
    sampler = Sampler(Sampling(temperature, top_k or 0, top_p, repetition_penalty), seed)
    try:  # what is wrong is told before a device is opened
        model = ChatModel(file, template=template, context=context, candidates=max(CANDIDATES, top_k or 0))
    except ContextTooLarge as error:
        raise click.UsageError(f"--context: {error}") from error
    with open_for_work(wanted, frame) as device:
        session = _session(frame, device, model, str(file), sampler, system, max_tokens)
        if prompt is not None:
            session.answer(prompt)
        elif sys.stdin.isatty():
            session.listen()
        else:
            session.read()
        if stats:
            session.show_figures()


def _session(
    frame: Frame,
    device: Device,
    model: ChatModel,
    path: str,
    sampler: Sampler,
    system: str | None,
    most_tokens: int,
) -> Session:
    """The model on the device, and a conversation with it."""
    from sdk.cli.chat_report import Setting
    from sdk.cli.chat_session import Session

    frame.note(f"loading {model.name}")
    began = time.perf_counter()
    conversation, weights_bytes = model.load(device, system=system)
    seconds, info = time.perf_counter() - began, device.info
    setting = Setting(path, info.address, info.kernels, info.tick_hz, weights_bytes, seconds, sampler)
    return Session(frame, conversation, setting, most_tokens=most_tokens, most_context=model.most_context)
