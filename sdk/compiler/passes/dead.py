"""Operations whose results nothing reads go."""

from __future__ import annotations

from sdk.compiler.passes.rewriting import Rewriting


def remove_dead(program: Rewriting) -> None:
    """Keep what the program's outputs depend on."""
    program.keep(program.is_used)
