"""Callbacks that do not keep their object."""

from __future__ import annotations

import gc

from driver_shim.shared.weak_callback import weak_callback


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def hear(self, word: str, *, times: int) -> None:
        self.heard.append((word, times))


def test_it_calls_the_method_while_the_object_is_there() -> None:
    listener = Listener()
    weak_callback(listener.hear)("hello", times=2)
    assert listener.heard == [("hello", 2)]


def test_it_keeps_no_object_and_then_does_nothing() -> None:
    listener = Listener()
    heard = listener.heard
    call = weak_callback(listener.hear)
    del listener
    gc.collect()
    call("hello", times=2)
    assert not heard
