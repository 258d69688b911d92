"""`torch.compile(model, backend="npu")`: the graphs that PyTorch captures run on a device.

    with torch.inference_mode():
        y = torch.compile(model.eval(), backend="npu", options={"device": dev})(x)

PyTorch finds `npu` by its entry point. A graph goes to ONNX and onto the device when it is first called; parameters
and buffers go with it, and stay there until they are changed. What cannot run raises UnsupportedModel; with
options={"fallback": "eager"} its whole graph runs in PyTorch, with one warning that says why, and with "cpu" the nodes
that the device has no command for run in onnxruntime on the host, as `sdk.Device.load` has it.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sdk.compiler import torch_export
from sdk.device import Device
from sdk.errors import UnsupportedModel
from sdk.model.model import Model
from sdk.shared_devices import kept_device

FALLBACKS = ("error", "eager", "cpu")
"""What the device cannot run is an error, runs with its graph in PyTorch, or by itself in onnxruntime on the host."""
MAX_MODELS = 8
"""Of one graph that holds for several shapes: those that PyTorch can only trace for one are loaded for each."""


class EagerFallbackWarning(UserWarning):
    """A graph runs in PyTorch, since the device cannot run it and its user allowed that."""


def npu(graph: torch.fx.GraphModule, example_inputs: Sequence[Any], **arguments: Any) -> Callable[..., Any]:
    """PyTorch's interface to backends: a function that computes what the graph does.

    `options` has "device" (an open `sdk.Device`, or an address; None: what `sdk.Device()` opens, kept until the
    process ends) and "fallback" ("error", "eager" or "cpu"). Raises TypeError, ValueError.
    """
    return _Compiled(graph, _roles(graph, example_inputs), *_checked(arguments))


def _checked(arguments: Mapping[str, Any]) -> tuple[Device | str | None, str]:
    """(device, fallback) of `torch.compile`'s arguments."""
    unknown = arguments.keys() - {"options"}
    if unknown:
        raise TypeError(f"torch.compile's argument {min(unknown)!r} is not supported by the backend npu: leave it out")
    options = arguments.get("options") or {}
    unknown = options.keys() - {"device", "fallback"}
    if unknown:
        raise ValueError(f'the backend npu has no option {min(unknown)!r}; it has "device" and "fallback"')
    fallback = options.get("fallback", FALLBACKS[0])
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
    device = options.get("device")
    if device is not None and not isinstance(device, (Device, str)):
        raise TypeError(f"device must be an sdk.Device or an address, got {type(device).__name__}")
    return device, fallback


# --- what a graph's inputs are ---------------------------------------------------------------------------------------


class _Extent(NamedTuple):
    """An input that is an extent of another one."""

    tensor: int
    axis: int


class _Roles(NamedTuple):
    """The places of a graph's inputs, by what they are."""

    constants: tuple[int, ...]
    """Parameters and buffers of the user's modules."""
    tensors: tuple[int, ...]
    free: tuple[frozenset[int], ...]
    """Of each tensor, the axes whose extents may change from call to call."""
    extents: dict[int, _Extent]
    values: tuple[int, ...]
    """Numbers that are no extent: each set of them has a program of its own."""


def _roles(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> _Roles:
    traced = [node.meta.get("example_value") for node in _placeholders(graph)]
    constants = [place for place, example in enumerate(example_inputs) if _is_constant(example)]
    tensors = [
        place
        for place, example in enumerate(example_inputs)
        if isinstance(example, torch.Tensor) and place not in constants
    ]
    where = {
        str(extent): _Extent(place, axis)
        for place in reversed(tensors)
        if isinstance(traced[place], torch.Tensor)
        for axis, extent in enumerate(traced[place].shape)
        if isinstance(extent, torch.SymInt)
    }
    free = [
        frozenset(axis for axis, extent in enumerate(_shape(traced[place])) if isinstance(extent, torch.SymInt))
        for place in tensors
    ]
    numbers = [place for place, example in enumerate(example_inputs) if not isinstance(example, torch.Tensor)]
    extents = {place: where[str(traced[place])] for place in numbers if str(traced[place]) in where}
    values = tuple(place for place in numbers if place not in extents)
    return _Roles(tuple(constants), tuple(tensors), tuple(free), extents, values)


def _is_constant(example: Any) -> bool:
    """Dynamo hands parameters and buffers in like inputs, and marks them: they stay where they are."""
    marked = getattr(example, "_dynamo_static_input_type", None) is not None
    return isinstance(example, torch.nn.Parameter) or (isinstance(example, torch.Tensor) and marked)


def _shape(traced: Any) -> Sequence[Any]:
    return traced.shape if isinstance(traced, torch.Tensor) else ()


# --- the graph as a module that can be exported ----------------------------------------------------------------------


class _Bound(torch.nn.Module):  # type: ignore[misc]
    """A graph as a function of its tensors alone: the rest is part of it, or follows from their shapes."""

    def __init__(self, graph: torch.fx.GraphModule, roles: _Roles, arguments: Sequence[Any]) -> None:
        super().__init__()
        self._graph = _with_known_operators(graph)
        self._roles = roles
        self._count = len(arguments)
        self._values = {place: arguments[place] for place in roles.values}
        names = [node.name for node in _placeholders(graph)]
        self._constants = {place: names[place] for place in roles.constants}
        for place, name in self._constants.items():
            self.register_buffer(name, arguments[place].detach(), persistent=False)
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The graph's outputs that it computes."""
        given: dict[int, Any] = dict(zip(self._roles.tensors, tensors, strict=True))
        given |= self._values
        given |= {place: getattr(self, name) for place, name in self._constants.items()}
        given |= {place: given[extent.tensor].shape[extent.axis] for place, extent in self._roles.extents.items()}
        outputs = self._graph(*(given[place] for place in range(self._count)))
        returned = zip(_outputs(self._graph), outputs, strict=True)
        return tuple(output for entry, output in returned if _is_computed(entry))


def _with_known_operators(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with PyTorch's fused attention layers in parts: they have no translation, and no function body."""
    if not any(node.target in _IN_PARTS for node in graph.graph.nodes):
        return graph
    copied = torch.fx.GraphModule(graph, torch.fx.Graph())
    copied.graph.output(copied.graph.graph_copy(graph.graph, {}))
    for node in copied.graph.nodes:
        node.target = _IN_PARTS.get(node.target, node.target)
    copied.recompile()
    return copied


def _attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim: int,
    num_head: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    mask: Any = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Any, Any]:
    """`torch._native_multi_head_attention`: batch first; a mask is true where a key is hidden."""
    linear = torch.nn.functional.linear
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    queries, keys, values = (
        linear(x, weight, bias).unflatten(-1, (num_head, embed_dim // num_head)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = queries @ keys.transpose(-1, -2) * (embed_dim // num_head) ** -0.5
    if mask is not None:
        hidden = mask.to(torch.bool)
        hidden = hidden[:, None, None, :] if mask_type == _OF_KEYS else hidden  # (pairs), or batch × heads × pairs
        scores = scores.masked_fill(hidden, -torch.inf)
    shares = scores.softmax(-1)
    output = linear((shares @ values).transpose(1, 2).flatten(-2), proj_weight, proj_bias)
    if not need_weights:
        return output, None
    return output, shares.mean(1) if average_attn_weights else shares


def _encoder_layer(
    src: Any,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Any,
    norm_bias_1: Any,
    norm_weight_2: Any,
    norm_bias_2: Any,
    ffn_weight_1: Any,
    ffn_bias_1: Any,
    ffn_weight_2: Any,
    ffn_bias_2: Any,
    mask: Any = None,
    mask_type: int | None = None,
) -> Any:
    """`torch._transformer_encoder_layer_fwd`."""
    functional = torch.nn.functional

    def attend(x: Any) -> Any:
        weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _attention(x, x, x, embed_dim, num_heads, *weights, mask, need_weights=False, mask_type=mask_type)[0]

    def feed_forward(x: Any) -> Any:
        activation = functional.gelu if use_gelu else functional.relu
        return functional.linear(activation(functional.linear(x, ffn_weight_1, ffn_bias_1)), ffn_weight_2, ffn_bias_2)

    def norm_1(x: Any) -> Any:
        return functional.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm_2(x: Any) -> Any:
        return functional.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        attended = src + attend(norm_1(src))
        return attended + feed_forward(norm_2(attended))
    attended = norm_1(src + attend(src))
    return norm_2(attended + feed_forward(attended))


_OF_KEYS = 1
"""The `mask_type` of a mask that is batch × keys."""
_IN_PARTS: dict[Any, Callable[..., Any]] = {
    torch._transformer_encoder_layer_fwd: _encoder_layer,
    torch._native_multi_head_attention: _attention,
}


# --- running it ------------------------------------------------------------------------------------------------------


class _Seen:
    """A constant as it was when it went to the device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._state = self._state_of(tensor)

    def is_still(self, tensor: torch.Tensor) -> bool:
        """Whether it is that tensor, unchanged as far as PyTorch counts (not what is written through `.data`)."""
        return self._tensor() is tensor and self._state_of(tensor) == self._state

    @staticmethod
    def _state_of(tensor: torch.Tensor) -> tuple[int, int]:
        return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


class _Loaded(NamedTuple):
    """The graph on the device, for the numbers in it and the shapes that its model takes."""

    values: tuple[Any, ...]
    model: Model

    def takes(self, values: tuple[Any, ...], arrays: Sequence[NDArray[Any]]) -> bool:
        """Whether it computes the graph for these."""
        return values == self.values and all(
            len(info.shape) == array.ndim
            and all(not isinstance(want, int) or want == got for want, got in zip(info.shape, array.shape, strict=True))
            for info, array in zip(self.model.inputs, arrays, strict=True)
        )


class _Compiled:
    """What PyTorch calls in place of a graph. Thread-safe."""

    def __init__(self, graph: torch.fx.GraphModule, roles: _Roles, device: Device | str | None, fallback: str) -> None:
        self._graph = graph
        self._roles = roles
        self._device = device
        self._fallback = fallback
        self._eager = False
        """Whether it was found that the device cannot run it."""
        self._lock = threading.Lock()
        self._constants: list[_Seen] = []
        self._loaded: list[_Loaded] = []

    def __call__(self, *arguments: Any) -> Any:
        if self._eager:
            return self._graph(*arguments)
        try:
            return self._on_device(arguments)
        except UnsupportedModel as error:
            if self._fallback != "eager":
                raise
            warnings.warn(f"a graph runs in PyTorch, not on the device: {error}", EagerFallbackWarning, stacklevel=2)
            self._eager = True
            return self._graph(*arguments)

    def _on_device(self, arguments: Sequence[Any]) -> Any:
        tensors = [arguments[place] for place in self._roles.tensors]
        learning = [argument for argument in arguments if _learns(argument)] if torch.is_grad_enabled() else []

        def run() -> tuple[torch.Tensor, ...]:
            arrays = [_as_array(tensor) for tensor in tensors]
            loaded = self._find(arguments, arrays)
            outputs = loaded.model(dict(zip((info.name for info in loaded.model.inputs), arrays, strict=True)))
            return tuple(_as_tensor(outputs[info.name]) for info in loaded.model.outputs)

        results = _NoGradient.apply(run, learning[0]) if learning else run()
        return self._assembled(results, arguments)

    def _assembled(self, results: Sequence[torch.Tensor], arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The graph's outputs: those computed by the device, inputs that it returns, and constants."""
        left = iter(results)
        given = dict(zip(_placeholders(self._graph), arguments, strict=True))
        return tuple(next(left) if _is_computed(entry) else given.get(entry, entry) for entry in _outputs(self._graph))

    def _find(self, arguments: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> _Loaded:
        """The graph on the device for these arguments, exported and loaded if it is not there yet."""
        values = tuple(arguments[place] for place in self._roles.values)
        constants = [arguments[place] for place in self._roles.constants]
        with self._lock:
            if not all(seen.is_still(tensor) for seen, tensor in zip(self._constants, constants, strict=False)):
                self._drop(len(self._loaded))
            for loaded in self._loaded:
                if loaded.takes(values, arrays):
                    return loaded
            self._drop(len(self._loaded) + 1 - MAX_MODELS)
            loaded = _Loaded(values, self._load(arguments, [array.shape for array in arrays]))
            self._constants = [_Seen(tensor) for tensor in constants]
            self._loaded.append(loaded)
            return loaded

    def _drop(self, count: int) -> None:
        """Take the oldest off the device."""
        for loaded in self._loaded[: max(count, 0)]:
            loaded.model.close()
        del self._loaded[: max(count, 0)]

    def _load(self, arguments: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Model:
        device = self._device if isinstance(self._device, Device) else kept_device(self._device)
        _refuse_numbers(self._graph)
        free = (tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in self._roles.free),)
        tensors = [arguments[place].detach() for place in self._roles.tensors]
        proto = torch_export.to_onnx(_Bound(self._graph, self._roles, arguments), tensors, free)
        names = [entry.name for entry in proto.graph.input]
        expected = {name: [shape] for name, shape in zip(names, shapes, strict=True)}
        return device.load(proto, shapes=expected, fallback="cpu" if self._fallback == "cpu" else "error")


class _NoGradient(torch.autograd.Function):  # type: ignore[misc]
    """The device's results where gradients are on: what asks for a gradient through them is told that there is none."""

    @staticmethod
    def forward(context: Any, run: Callable[[], tuple[torch.Tensor, ...]], learning: torch.Tensor) -> Any:
        results = run()
        context.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return results

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        raise RuntimeError("what ran on the device has no gradient: train in PyTorch, and compile for inference")


def _outputs(graph: torch.fx.GraphModule) -> Sequence[Any]:
    """The nodes that the graph returns, and the constants among its outputs as they are."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    returned: Sequence[Any] = output.args[0]
    return returned


def _placeholders(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _is_computed(entry: Any) -> bool:
    """Whether an output is neither a constant nor one of the graph's inputs."""
    return isinstance(entry, torch.fx.Node) and entry.op != "placeholder"


def _refuse_numbers(graph: torch.fx.GraphModule) -> None:
    """Raise UnsupportedModel for a graph that returns something computed which is no tensor."""
    for entry in _outputs(graph):
        if _is_computed(entry) and not isinstance(entry.meta.get("example_value"), torch.Tensor):
            reason = f"the graph returns {entry.name!r}, which is no tensor"
            raise UnsupportedModel(reason, subsystem="compiler", remedy="return tensors alone")


def _learns(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.requires_grad


def _as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as an array, where it is one. Raises UnsupportedModel for a tensor of another device's."""
    if tensor.device.type != "cpu":
        raise UnsupportedModel(f"a tensor is on {tensor.device}", subsystem="compiler", remedy='move it: x.to("cpu")')
    plain = tensor.detach()
    if plain.dtype is torch.bfloat16:
        import ml_dtypes

        return np.asarray(plain.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(plain.numpy())


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
