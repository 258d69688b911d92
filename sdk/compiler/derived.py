"""Arrays that are made anew whenever they are asked for: constants that the compiler made of a model's weights.

What is kept is the way to make them, so that a model's weights are never in host memory a second time, all at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """An array by what makes it. Equal recipes of equal parts make equal arrays."""

    recipe: str
    """What is done with the parts, in words that say all that `make` depends on."""
    parts: tuple[Source, ...]
    make: Callable[[Sequence[Array]], Array]

    def array(self) -> Array:
        """The array, made anew."""
        return self.make([array_of(part) for part in self.parts])

    def key(self, key_of: Callable[[Array], str]) -> str:
        """A name for the contents, by those of the parts."""
        names = [part.key(key_of) if isinstance(part, Derived) else key_of(part) for part in self.parts]
        return f"derived:{hashlib.sha256(repr((self.recipe, names)).encode()).hexdigest()}"


Source: TypeAlias = "Array | Derived"


def array_of(source: Source) -> Array:
    """The array itself."""
    return source.array() if isinstance(source, Derived) else source
