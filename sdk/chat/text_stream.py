"""Text of tokens as they come, in whole characters."""

from __future__ import annotations

import codecs

from sdk.chat.vocabulary import Vocabulary


class TextStream:
    """Turns tokens into text one by one. A character whose bytes are not all there yet is held back."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = vocabulary.strips_first_space

    def push(self, token: int) -> str:
        """What can be shown now that this token came; often one word, sometimes nothing."""
        spelt = self._vocabulary.bytes_of(token)
        if self._strip and spelt:
            spelt, self._strip = spelt.removeprefix(b" "), False
        return self._decoder.decode(spelt)

    def finish(self) -> str:
        """U+FFFD where the last character was cut short, else nothing."""
        return self._decoder.decode(b"", final=True)
