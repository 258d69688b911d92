"""Text for people, folded to 80 columns; a name that is longer than a line goes on in the next."""

from __future__ import annotations

import textwrap

WIDTH = 80
_INDENT = " " * 4


def folded(text: str, *, after: str = "", whole_words: bool = False) -> str:
    """The text with each of its lines folded; `after` is what stands before it in its first line.

    With `whole_words` a word that is longer than a line stays whole: a path, say, that somebody may copy.
    """
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent=_INDENT, break_on_hyphens=False, break_long_words=not whole_words
    )
    first, *others = [wrapper.fill(line) or line for line in (after + text).split("\n")]
    return "\n".join([first.removeprefix(after), *others])


def with_remedy(message: str, remedy: str | None, *, after: str = "") -> str:
    """A folded message and what to do: beside it where that fits, else in a line of its own, whole, to be copied."""
    told = folded(message, after=after, whole_words="\n" not in message)
    if remedy is None:
        return told
    last = (after + told).rpartition("\n")[2]
    fits = len(last) + len(f" ({remedy})") <= WIDTH
    return f"{told} ({remedy})" if fits else f"{told}\n{_INDENT}({remedy})"
