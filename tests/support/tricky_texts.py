"""Texts that tokenisers get wrong: digits, runs of white space, scripts, emoji, code."""

from __future__ import annotations

import random

CHOSEN = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t x",
    "\r\n\r\n",
    " \n \n",
    "a  b   c    d",
    "trailing   ",
    "   leading",
    "one\n\n  two\n\t\tthree",
    "no-break\u00a0space and\u2003em\u3000ideographic",
    "1",
    "42",
    "2024-12-31T23:59:59",
    "3.14159265358979",
    "1,234,567.89",
    "0x7fffffff 0b1010 1e-10",
    "x1y22z333",
    "٣ ४ ５ Ⅷ ½ ² ①",
    "don't we'll I'm you've he'd they're it's",
    "DON'T WE'LL I'M",
    "don’t ‘quoted’ “text”",
    "' 's 't 'x",
    "The capital of France is Paris.",
    "e\u0301 versus é, A\u030a versus Å",
    "ﬁ ﬂ ﷺ",
    "Straße Ünïcödé naïve façade",
    "Привет, мир! Как дела?",
    "Καλημέρα κόσμε",
    "שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "🙂",
    "👩‍👩‍👧‍👦 family",
    "🇫🇷🇩🇪 flags",
    "👍🏽 skin tone",
    "✈️ variation ❤️‍🔥",
    "𝕄𝕒𝕥𝕙 𝛼𝛽𝛾 ∑∫√∞ ≠≤≥",
    "\u200bzero\u200dwidth\ufeffmark",
    "\x00\x01\x1b[31m\x7f",
    "\x85next\u2028line\u2029paragraph",
    "def f(x: int) -> int:\n    return x ** 2  # squared\n",
    "for (int i = 0; i < 10; ++i) { a[i] += b[i] << 2; }",
    '{"key": [1, 2.5, null], "nested": {"a": "b\\n"}}',
    "<html><body class='x'>&amp;</body></html>",
    "SELECT * FROM t WHERE a != 'b' -- why",
    "https://example.org/a_b/c-d?e=f&g=%20h#i",
    "user@example.org +1 (555) 010-9999",
    "CamelCase snake_case kebab-case SCREAMING_SNAKE",
    "!!!???...---___***",
    "a" * 100,
    "ab" * 50,
    "=" * 80,
    " " * 65 + "x",
    "\n" * 20 + "x",
    "$100 €20 ¥3000 50% #1 @you",
    "Mr. O'Neill's co-op re-elected",
    "supercalifragilisticexpialidocious",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "<|not_a_token|> <|im_star <im_end>",
    "I\u0307stanbul ıİ ǅ",
)
_PIECES = (
    *(" ", "  ", "\n", "\t", "\r\n", "   \n", "\u00a0"),
    *("the", " of", "Paris", "naïve", "мир", "世界", "नम", "é", "e\u0301"),
    *("7", "19", "2024", "½", "'s", "'ll", "'", '"'),
    *("🙂", "👩‍👧", "→", "...", "!?", "_", "==", "{}", "()", "\\n", "//", "#", "€"),
)


def tricky_texts(count: int = 240) -> list[str]:
    """The chosen ones, and up to `count` mixtures of their kinds."""
    mixed = random.Random(12)
    mixtures = ("".join(mixed.choices(_PIECES, k=mixed.randint(2, 12))) for _ in range(count - len(CHOSEN)))
    return [*CHOSEN, *mixtures]
