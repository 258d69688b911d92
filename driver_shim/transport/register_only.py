"""Base of the ways in without DMA and interrupts: they say so, by raising UnsupportedPlatform."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence

from driver_shim.errors import no_dma
from driver_shim.transport.base import Transport


class RegisterOnlyTransport(Transport):
    """Registers and nothing else; looking at them disturbs nobody."""

    has_dma = False
    resets_on_open = False

    @abc.abstractmethod
    def _check_open(self) -> None:
        """Raise Closed, DeviceLost."""

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Not this way. Raises UnsupportedPlatform."""
        self._check_open()
        raise no_dma(self.address)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Nothing was ever mapped. Raises ValueError."""
        self._check_open()
        raise ValueError(f"{self.address}: {size:#x} bytes at bus address {iova:#x} are not mapped")

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """None: there is no DMA."""
        return ()

    def interrupt_count(self) -> int:
        """None that would arrive here."""
        return 0

    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        """Not this way. Raises UnsupportedPlatform, unless nothing is to be connected."""
        self._check_open()
        if any(fd is not None for fd in eventfds):
            raise no_dma(self.address)

    def reset(self) -> None:
        """Not this way: what is looked at stays as it is. Raises UnsupportedPlatform."""
        self._check_open()
        raise no_dma(self.address)

    def progress(self) -> None:
        """Yield the CPU."""
        os.sched_yield()
