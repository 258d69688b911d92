"""How much memory a model's states have."""

from __future__ import annotations

from typing import Any

import pytest

from sdk.state.sizing import memory_bytes


@pytest.mark.parametrize(
    ("given", "size"),
    [(1, 1), (4096, 4096), ("4096", 4096), ("256MiB", 256 << 20), (" 1.5 gib ", 3 << 29), ("2kB", 2000), ("1 B", 1)],
)
def test_memory_is_given_as_bytes_or_as_a_text(given: int | str, size: int) -> None:
    assert memory_bytes(given) == size


@pytest.mark.parametrize("given", [0, -1, "", "MiB", "0GiB", "-1", "1 parsec", "1e9", "9" * 400])
def test_what_is_no_amount_of_memory_is_refused(given: int | str) -> None:
    with pytest.raises(ValueError, match="use bytes above 0"):
        memory_bytes(given)


@pytest.mark.parametrize("given", [True, 1.5, None, b"1MiB"])
def test_what_is_neither_number_nor_text_is_a_wrong_type(given: Any) -> None:
    with pytest.raises(TypeError, match="takes bytes or a text"):
        memory_bytes(given)
