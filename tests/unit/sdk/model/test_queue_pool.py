"""Queues that lanes share, with a device that has few, and that cleans up while it makes one."""

from __future__ import annotations

from typing import Any, cast

import pytest

from driver_shim.errors import CommandFailed
from sdk.model.queue_pool import QueuePool
from sdk.queue.queue import Queue


class Device:
    """Makes up to `most` queues; `on_create` is called first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.made: list[Queue] = []
        self.code = "invalid-queue"
        self.on_create: Any = lambda: None

    def create(self, depth: int, when_full: str) -> Queue:
        self.on_create()
        if len(self.made) == self.most:
            raise CommandFailed("no queue", code=self.code)
        self.made.append(cast("Queue", object()))
        return self.made[-1]


def test_lanes_take_new_queues_up_to_the_most_and_then_the_quietest() -> None:
    device, pool = Device(8), QueuePool(2)
    first, second, third = (pool.take(device.create) for _ in range(3))
    assert first is not second and third in (first, second)
    other = second if third is first else first
    assert pool.take(device.create) is other
    assert len(device.made) == 2


def test_a_queue_is_given_back_by_its_last_lane_alone() -> None:
    device, pool = Device(8), QueuePool(1)
    queue = pool.take(device.create)
    assert pool.take(device.create) is queue
    assert pool.give(queue) is None
    assert pool.give(queue) is queue
    assert pool.give(queue) is None  # a reset forgot it


def test_where_the_application_has_all_others_lanes_share_what_there_is() -> None:
    device, pool = Device(1), QueuePool(4)
    queue = pool.take(device.create)
    assert pool.take(device.create) is queue
    with pytest.raises(CommandFailed):
        QueuePool(4).take(device.create)


def test_a_queue_that_goes_while_another_is_made_is_not_taken() -> None:
    device, pool = Device(1), QueuePool(4)
    queue = pool.take(device.create)
    device.on_create = lambda: pool.give(queue)
    with pytest.raises(CommandFailed):
        pool.take(device.create)


def test_a_reset_is_no_lack_of_queues() -> None:
    device, pool = Device(1), QueuePool(4)
    pool.take(device.create)
    device.code = "device-reset"
    with pytest.raises(CommandFailed) as caught:
        pool.take(device.create)
    assert caught.value.code == "device-reset"
