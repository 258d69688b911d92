"""How byte-level vocabularies cut text into words before they look any up, by the name in `tokenizer.ggml.pre`.

Words that are cut elsewhere than in training become other tokens, so a name that is not in the table is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from driver_shim.errors import UnsupportedModel

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CAPITALISED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_DIGIT = r"\p{N}"
_DIGITS = r"\p{N}{1,3}"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINE_ENDS = r"\s*[\r\n]+"
_SPACES_BEFORE_A_WORD = r"\s+(?!\S)"
_SPACES = r"\s+"
_GAPS = (_LINE_ENDS, _SPACES_BEFORE_A_WORD, _SPACES)


class Cut(NamedTuple):
    """One way of cutting text into words."""

    patterns: tuple[tuple[str, ...], ...] = ()
    """Each a list of alternatives; what one has cut is cut by the next. What none matches is a word, too."""
    gpt2: bool = False
    """In the end every piece is cut as GPT-2 does."""
    single_digits: bool = False
    whole_words: bool = False
    """A word that is in the vocabulary is that token, whether or not merges lead to it."""
    composed: bool = False
    """Text is brought to Unicode's composed form (NFC) first."""


CUTS = {
    "gpt-2": Cut(gpt2=True),
    "smollm": Cut(gpt2=True, single_digits=True),
    "starcoder": Cut(gpt2=True, single_digits=True),
    "llama-bpe": Cut(((_CONTRACTION, _WORD, _DIGITS, _SIGNS, *_GAPS),), whole_words=True),
    "qwen2": Cut(((_CONTRACTION, _WORD, _DIGIT, _SIGNS, *_GAPS),), composed=True),
    "tekken": Cut(((*_CAPITALISED_WORDS, _DIGIT, _SIGNS_AND_SLASHES, *_GAPS),), whole_words=True),
    "default": Cut(
        (
            (r"[\p{P}\$\+<=>\^~\|]+",),
            (r"'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES_BEFORE_A_WORD),
            (r"\p{N}+",),
            (r"[0-9][0-9][0-9]",),
        )
    ),
}
"""Name → way. "default" is what files mean that name none."""
DEFAULT = "default"


def cut_named(name: str) -> Cut:
    """The way of this name. Raises UnsupportedModel."""
    if name not in CUTS:
        raise UnsupportedModel(
            f"the vocabulary cuts words in a way that is not built, tokenizer.ggml.pre = {name!r}",
            subsystem="vocabulary",
            remedy=f"there are: {', '.join(CUTS)}",
        )
    return CUTS[name]


def pre_tokeniser(cut: Cut) -> Any:
    """The `tokenizers` object that cuts so, and spells bytes as byte-level vocabularies do."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if cut.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps += [pre_tokenizers.Split(Regex("|".join(pattern)), "isolated") for pattern in cut.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.gpt2))
    return pre_tokenizers.Sequence(steps)
