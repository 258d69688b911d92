"""A language model of a GGUF file, made ready to talk to; on a device, a conversation with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import sdk
from sdk.chat.conversation import Conversation
from sdk.chat.figures import Meter
from sdk.chat.metadata import read_metadata
from sdk.chat.sequence import INPUT, TokenSequence
from sdk.chat.template import ChatTemplate
from sdk.chat.vocabulary import Vocabulary
from sdk.gguf.file import open_gguf
from sdk.gguf.parameters import Parameters, read_parameters

if TYPE_CHECKING:
    from sdk.device import Device

PREFILL_TOKENS = 128
"""What a run reads of a prompt at most."""
CANDIDATES = 64
"""Scores that a step brings over the bus, unless more are sampled from: the best of the whole vocabulary."""
DEFAULT_CONTEXT = 2048
"""Tokens of a conversation; models that take less have less. What they take at most may not fit anywhere."""
_ELEMENT_BYTES = 4
_ROUNDED_TOKENS = 256
"""State memory is taken in whole blocks, which are smaller than this."""


class ContextTooLarge(ValueError):
    """More tokens than the model was made for."""


class Loaded(NamedTuple):
    """A model on a device."""

    conversation: Conversation
    weights_bytes: int | None
    """Device memory that weights lie in."""


class ChatModel:
    """A language model of a GGUF file and all that the host needs to talk to it; on no device yet.

    Raises UnsupportedModel for what cannot run or was not taught to answer, TemplateError, ContextTooLarge, OSError,
    and NpuError where what the extra brings is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        template: str | None = None,
        context: int | None = None,
        candidates: int = CANDIDATES,
    ) -> None:
        metadata = read_metadata(path)
        self.name = str(metadata.get("general.name", os.path.basename(path)))
        self._vocabulary = Vocabulary(metadata)
        self._template = ChatTemplate(metadata, self._vocabulary, template)
        parameters = read_parameters(open_gguf(path))
        self.most_context = parameters.context_length
        """Tokens of a conversation that it was made for."""
        if context is not None and context > self.most_context:
            raise ContextTooLarge(f"{context} tokens of context: the model takes at most {self.most_context}")
        self.context = context or min(DEFAULT_CONTEXT, self.most_context)
        self._state_bytes = _state_bytes(parameters, self.context)
        self._graph = sdk.read_gguf(path, logits=f"top-{min(candidates, len(self._vocabulary))}")

    def load(self, device: Device, *, system: str | None = None) -> Loaded:
        """A conversation on a device. Raises as `Device.load` and `Model.state`."""
        shapes = {INPUT: [(1, min(PREFILL_TOKENS, self.context)), (1, 1)]}
        model = device.load(self._graph, shapes=shapes, state_memory=self._state_bytes)
        try:
            state = model.state(max_tokens=self.context)
        except BaseException:
            model.close()
            raise
        sequence = TokenSequence(model, state, Meter(device))
        conversation = Conversation(sequence, self._vocabulary, self._template, system=system)
        return Loaded(conversation, None if model.plan is None else model.plan.constants_bytes)


def _state_bytes(parameters: Parameters, context: int) -> int:
    """Memory that holds so many tokens' keys and values, whatever they are stored as."""
    token = parameters.layers * parameters.key_heads * (parameters.key_size + parameters.value_size) * _ELEMENT_BYTES
    return token * (-(-context // _ROUNDED_TOKENS) * _ROUNDED_TOKENS)
