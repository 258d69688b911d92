"""The arguments of a model's run: checked against what the model takes, and put in its order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdk.compiler import ANY_SHAPE, Signature, TensorInfo
from sdk.memory.buffers import Span, as_dtype
from sdk.model.program_run import Input
from sdk.queue.commands import check_buffer

Shape = tuple[int, ...]
ShapeKey = tuple[Shape, ...]


_TEXT_KINDS, _NO_NUMBER_KINDS = "UST", "MmV"
"""By numpy's letters: str, bytes and StringDType; dates, spans of time and records."""
_NO_TEXT = "it takes numbers: turn text into those before, as the model's tokenizer or vocabulary does"


class _Check(NamedTuple):
    """What an input must be."""

    info: TensorInfo
    dtype: np.dtype[Any]
    fixed: bool
    """Whether its shape holds numbers alone."""


class Planned(NamedTuple):
    """In place of an input that is to come: its shape."""

    shape: Shape


class Call(NamedTuple):
    """The arguments of one run."""

    values: list[Any]
    """Arrays and buffers in the order of the model's inputs; after them those with a default, where they are given."""
    optional: tuple[str, ...] = ()
    """Names of the given inputs that have a default."""


class InputChecks:
    """The inputs of one model."""

    def __init__(self, signature: Signature) -> None:
        self._infos = signature.inputs
        self._optional = {info.name: info for info in signature.optional}
        self._names = [info.name for info in signature.inputs]
        self._checks: list[_Check] = []
        self.left_out: Callable[[], Collection[str]] = tuple
        """Inputs that a run with a state leaves out."""

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._optional

    def in_order(self, arrays: tuple[Any, ...], named: Mapping[str, Any], owner: object) -> Call:
        """The values of one run in the order of the model's inputs. Raises TypeError, ValueError."""
        if not self._checks:
            self._checks = [_check_for(info) for info in self._infos]
        given: list[TensorInfo] = []
        if not named and len(arrays) == len(self._names) and not isinstance(arrays[0] if arrays else None, Mapping):
            values: Sequence[Any] = arrays
        else:
            by_name = self._by_name(arrays, named)
            given = [info for name, info in self._optional.items() if name in by_name]
            values = [by_name[name] for name in (*self._names, *(info.name for info in given))]
        checks = [*self._checks, *map(_check_for, given)] if given else self._checks
        checked = [_checked(check, value, owner) for check, value in zip(checks, values, strict=True)]
        if not all(check.fixed for check in checks):
            _agree_on_symbols([*self._infos, *given], checked)
        return Call(checked, tuple(info.name for info in given))

    def named(self, call: Call) -> dict[str, Any]:
        """The values of a call by the names of their inputs."""
        return dict(zip((*self._names, *call.optional), call.values, strict=True))

    @staticmethod
    def _joined(given: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
        twice = given.keys() & named.keys()
        if twice:
            raise TypeError(f"input {min(twice)!r} is given twice")
        return {**given, **named}

    def _by_name(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        names = self._names
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            values = self._joined(arrays[0], named)
        else:
            if len(arrays) > len(names):
                raise TypeError(f"{len(arrays)} arrays given; the model takes {len(names)}: {', '.join(names)}")
            values = dict(zip(names, arrays, strict=False))
            values = self._joined(values, named)
        missing = [name for name in names if name not in values]
        unknown = [name for name in values if name not in names and name not in self._optional]
        if missing and not unknown and set(missing) <= set(self.left_out()):
            raise TypeError(f"input {missing[0]!r} is missing; give state=model.state(), which holds what came before")
        if missing or unknown:
            wrong = f"input {unknown[0]!r} is unknown" if unknown else f"input {missing[0]!r} is missing"
            raise TypeError(f"{wrong}; the model takes: {', '.join(map(str, self._infos))}")
        return values


def _check_for(info: TensorInfo) -> _Check:
    dtype = (
        np.dtype(object) if info.dtype == "object" else as_dtype(info.dtype)
    )  # strings, which nodes on the host take
    return _Check(info, dtype, all(isinstance(extent, int) for extent in info.shape))


def _checked(check: _Check, value: Any, owner: object) -> Input:
    """The value: an array or a buffer of exactly the declared dtype and a shape that fits."""
    info, dtype = check.info, check.dtype
    if isinstance(value, Span):
        check_buffer(value, f"input {info.name!r}", owner)
    elif isinstance(value, np.generic):
        value = np.asarray(value)
    elif not isinstance(value, np.ndarray):
        remedy = _NO_TEXT if isinstance(value, (str, bytes)) else f"use np.asarray(x, dtype={dtype.name!r})"
        raise TypeError(f"input {info.name!r}: expected an array {info}, got {type(value).__name__}; {remedy}")
    if value.dtype is not dtype and value.dtype != dtype:
        raise _wrong_type(info.name, dtype, value.dtype)
    if not _fits(info.shape, value.shape):
        raise ValueError(f"input {info.name!r}: expected shape {_show(info.shape)}, got {value.shape}; reshape it")
    return value  # type: ignore[no-any-return]


def _wrong_type(name: str, expected: np.dtype[Any], got: np.dtype[Any]) -> TypeError:
    """The error that says what was given instead, and what turns that into what is expected, if anything does."""
    found, remedy = got.name, f"use x.astype({expected.name!r})"
    if expected.kind == "O":
        remedy = "use x.astype(object)" if got.kind in _TEXT_KINDS else "it takes strings: give an array of those"
    elif got.kind in _TEXT_KINDS:
        found, remedy = f"text ({got})", _NO_TEXT
    elif got.kind == "O":
        found = "Python objects (dtype object)"
        remedy = (
            f"np.array(x.tolist(), dtype={expected.name!r}) makes numbers of them, or says why that is not possible"
        )
    elif got.kind in _NO_NUMBER_KINDS:
        remedy = "give numbers"
    elif found == expected.name:
        found = f"{expected.name} of foreign byte order"
    return TypeError(f"input {name!r}: expected {expected.name}, got {found}; {remedy}")


def _fits(declared: Sequence[int | str], shape: Shape) -> bool:
    if declared == shape or tuple(declared) == ANY_SHAPE:
        return True
    return len(shape) == len(declared) and all(
        not isinstance(wanted, int) or wanted == got for wanted, got in zip(declared, shape, strict=True)
    )


def _agree_on_symbols(inputs: Sequence[TensorInfo], values: Sequence[Input]) -> None:
    """Raise ValueError when one symbolic extent has two values."""
    seen: dict[str, tuple[int, str]] = {}
    for info, value in zip(inputs, values, strict=True):
        if info.shape == ANY_SHAPE:
            continue
        for wanted, got in zip(info.shape, value.shape, strict=True):
            if isinstance(wanted, str):
                extent, where = seen.setdefault(wanted, (got, info.name))
                if extent != got:
                    raise ValueError(f"extent {wanted!r} is {extent} in input {where!r} and {got} in {info.name!r}")


def check_out(out: Mapping[str, Span], outputs: Sequence[TensorInfo], owner: object) -> None:
    """Raise TypeError or ValueError unless each names an output and is a buffer of this device."""
    if not isinstance(out, Mapping):
        raise TypeError(f"out takes buffers by output: {{name: buffer}}, got {type(out).__name__}")
    names = [info.name for info in outputs]
    for name, target in out.items():
        if name not in names:
            raise ValueError(f"out names output {name!r}; the model gives: {', '.join(names)}")
        check_buffer(target, f"out[{name!r}]", owner)
    places = sorted(
        (type(b._root).__name__, b.address, b.address + b.nbytes, name) for name, b in out.items() if b.nbytes
    )
    for (space, _, end, name), (other_space, start, _, other) in itertools.pairwise(places):
        if space == other_space and start < end:
            raise ValueError(f"out[{name!r}] and out[{other!r}] share memory: give each output a buffer of its own")


def _show(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(str(extent) for extent in shape) + ("," if len(shape) == 1 else "") + ")"


def requested_shapes(inputs: Sequence[TensorInfo], shapes: Mapping[str, Sequence[Sequence[int]]]) -> list[ShapeKey]:
    """The combinations to compile at load: the i-th shape of every input together. Raises TypeError, ValueError."""
    if not isinstance(shapes, Mapping) or not all(
        isinstance(listed, Sequence) and not isinstance(listed, str) for listed in shapes.values()
    ):
        raise TypeError(f'shapes takes lists of shapes by input: {{"{inputs[0].name}": [(1, 3, 224, 224)]}}')
    if not shapes:
        return []
    names = [info.name for info in inputs]
    for name in shapes:
        if name not in names:
            raise ValueError(f"shapes names input {name!r}; the model takes: {', '.join(names)}")
    counts = {len(listed) for listed in shapes.values()}
    if len(counts) != 1:
        raise ValueError(f"shapes lists different numbers of shapes: { {n: len(s) for n, s in shapes.items()} }")
    keys = []
    for index in range(counts.pop()):
        key = []
        for info in inputs:
            listed = shapes.get(info.name)
            if listed is None and not all(isinstance(extent, int) for extent in info.shape):
                raise ValueError(f"shapes must name input {info.name!r} too: its shape {_show(info.shape)} is symbolic")
            chosen = info.shape if listed is None else listed[index]
            if not isinstance(chosen, Sequence) or isinstance(chosen, str):
                raise TypeError(f'shapes takes lists of shapes: {{"{info.name}": [(1, 3, 224, 224)]}}')
            key.append(_checked_shape(info, tuple(chosen)))
        keys.append(tuple(key))
    return keys


def declared_shapes(inputs: Sequence[TensorInfo]) -> dict[str, Sequence[Sequence[int]]]:
    """The shapes that a model declares for all its inputs, in the form of `shapes`; empty where it leaves any open."""
    if not all(isinstance(extent, int) for info in inputs for extent in info.shape):
        return {}
    return {info.name: [tuple(int(extent) for extent in info.shape)] for info in inputs}


def _checked_shape(info: TensorInfo, shape: tuple[Any, ...]) -> Shape:
    whole = all(isinstance(extent, (int, np.integer)) and extent >= 0 for extent in shape)
    if not whole or not _fits(info.shape, shape):
        raise ValueError(f"shapes: {shape} does not fit input {info.name!r} of shape {_show(info.shape)}")
    return tuple(map(int, shape))
