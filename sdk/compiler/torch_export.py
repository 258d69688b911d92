"""PyTorch modules to ONNX models, by `torch.export` and PyTorch's own exporter. PyTorch is imported when it is used."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from driver_shim.errors import UnsupportedModel

if TYPE_CHECKING:
    import onnx

EXTRA = "pip install 'npu-sdk[torch]'"
_NEEDED = ("torch", "onnxscript")
_CHATTY = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")
"""Log, for every model, which packages of operators are not installed, and which nodes are left as they are."""
_FAST_PATHS_OFF = "call torch.backends.mha.set_fastpath_enabled(False) before the module is traced"


def comes_from_torch(model: object) -> bool:
    """Whether it is a `torch.nn.Module` or a `torch.export.ExportedProgram`. Does not import PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    export = sys.modules.get("torch.export")
    return isinstance(model, torch.nn.Module) or (export is not None and isinstance(model, export.ExportedProgram))


def to_onnx(
    module: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> onnx.ModelProto:
    """The module as an ONNX model: `example_inputs` are what its forward takes, by place or by name.

    Dimensions are those of the examples; `dynamic_shapes` is that of `torch.export.export`. Raises UnsupportedModel.
    """
    _require_packages()
    import torch

    with _quiet(), _without_fast_paths(), torch.no_grad():
        program = module
        if isinstance(module, torch.nn.Module):
            program = _exported(module, example_inputs, dynamic_shapes)
        elif example_inputs is not None:
            raise TypeError("example_inputs go with a torch.nn.Module; an ExportedProgram has its own")
        functional = _functional(program)
        _refuse_mutations(functional)
        try:
            return torch.onnx.export(functional, dynamo=True, verbose=False).model_proto
        except Exception as error:  # the exporter raises whatever its translations do
            raise _refusal("translated to ONNX", error) from error


def _functional(program: Any) -> Any:
    """The program without operators that write in place: what they write to shows in its signature."""
    try:
        return program.run_decompositions({})
    except Exception as error:  # see `_exported`
        raise _refusal("traced", error) from error


def _exported(module: Any, example_inputs: Any, dynamic_shapes: Any) -> Any:
    import torch

    if example_inputs is None:
        raise TypeError("a torch.nn.Module takes example_inputs, from which it is traced: dev.load(module, (x,))")
    if module.training:
        raise UnsupportedModel(
            "the module is in training mode, and the device has inference alone",
            subsystem="compiler",
            remedy="call module.eval()",
        )
    by_name = isinstance(example_inputs, Mapping)
    arguments = () if by_name else _as_tuple(example_inputs)
    named = dict(example_inputs) if by_name else {}
    try:
        return torch.export.export(module, arguments, named, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # also whatever the module itself raises while it is traced
        raise _refusal("traced", error) from error


def _as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """What forward takes by place; one tensor may come by itself."""
    return tuple(example_inputs) if isinstance(example_inputs, (list, tuple)) else (example_inputs,)


def _refuse_mutations(program: Any) -> None:
    """A program on the device writes nothing of its caller's."""
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise UnsupportedModel(
            f"the module writes to {written[0]!r}, which the device cannot do for it",
            subsystem="compiler",
            remedy="call eval() on a module that is training; else return the new value, and write it outside",
        )


def _refusal(step: str, error: Exception) -> UnsupportedModel:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    remedy = _FAST_PATHS_OFF if "nested" in reason.lower() or "_transformer_encoder" in reason else None
    return UnsupportedModel(f"the module cannot be {step}: {reason}", subsystem="compiler", remedy=remedy)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedModel(
            f"{' and '.join(missing)} must be installed to take modules of PyTorch",
            subsystem="compiler",
            remedy=EXTRA,
            code="missing-extra",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What PyTorch warns of its own inside is nothing that its user can mend."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_fast_paths() -> Iterator[None]:
    """In inference, attention layers run as one operator of PyTorch's own, for which there is no translation."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
