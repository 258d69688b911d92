"""The choice of a command's kernel: providers are asked in turn, the golden one last, which has them all."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Collection, Sequence

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.shared import import_guard
from emulator.engines.kernels.blocks import PlacedRequest, with_blocks
from emulator.engines.kernels.provider import KernelRequest, NamedKernel, Provider
from emulator.model.choices import KERNELS

_PROVIDERS: dict[str, tuple[str, ...]] = {
    "auto": ("onnxruntime", "numpy", "golden"),
    "numpy": ("numpy", "golden"),
    "golden": ("golden",),
}
"""Who is asked, for each of `KERNELS`. onnxruntime is left out where it is not installed, or barred."""


def prepare_all(kernels: str, commands: Sequence[PlacedRequest], private: Collection[int]) -> list[NamedKernel]:
    """The kernels of commands that run in this order; `private` are the intermediates, which may lie in blocks."""
    convolves = any(command.request.kind is CommandKind.CONV for command in commands)
    size = _block_size(kernels) if convolves else 0
    if size:
        chosen = [_asked(kernels, request) for request in with_blocks(commands, private, size)]
        kept = [kernel for kernel in chosen if kernel is not None]
        if len(kept) == len(chosen):
            return kept
    return [prepare(kernels, command.request) for command in commands]


def prepare(kernels: str, request: KernelRequest) -> NamedKernel:
    """The kernel of one command. Raises ValueError for a choice that is none of `KERNELS`."""
    kernel = _asked(kernels, request)
    if kernel is None:
        raise RuntimeError(f"{request.kind.name} has no kernel, not even a golden one")
    return kernel


def _asked(kernels: str, request: KernelRequest) -> NamedKernel | None:
    for name, provider in _providers(kernels):
        run = provider.prepare(request)
        if run is not None:
            return NamedKernel(f"{name}.{request.kind.name.lower()}", run)
    return None


def _block_size(kernels: str) -> int:
    """Channels of the blocks that a provider's convolutions have; 0 where they have none."""
    return max((provider.block_size() for _, provider in _providers(kernels)), default=0)


@functools.cache
def _providers(kernels: str) -> Sequence[tuple[str, Provider]]:
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r}; must be one of {', '.join(KERNELS)}")
    return [(name, _provider(name)) for name in _PROVIDERS[kernels] if _is_there(name)]


def _is_there(name: str) -> bool:
    if name != "onnxruntime":
        return True
    return not import_guard.installed() and importlib.util.find_spec(name) is not None


def _provider(name: str) -> Provider:
    return importlib.import_module(f"emulator.engines.kernels.{name}")
