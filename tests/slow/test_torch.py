"""PyTorch's modules on the device: `torch.compile(backend="npu")` and `dev.load(module, example_inputs)`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sdk
from sdk import UnsupportedModel
from tests.support.needs import module_of_extra
from tests.support.rigs import process_rig

torch = module_of_extra("torch", "torch")
module_of_extra("onnxscript", "torch")
nn, functional = torch.nn, torch.nn.functional

from sdk import torch_backend  # noqa: E402 - it imports torch
from sdk.torch_backend import EagerFallbackWarning  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # PyTorch warns of itself
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """PyTorch compiles one function at most eight times: those of other tests count where they share its code."""
    torch.manual_seed(7)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    gc.collect()


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig() as rig, rig.device(timeout=120) as opened:
        yield opened


def cnn() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * 4 * 4, 10)),
    ).eval()


def mlp() -> Any:
    layers = (nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3), nn.Softmax(-1))
    return nn.Sequential(*layers).eval()


def encoder(**options: Any) -> Any:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


NETS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "cnn": (cnn, (1, 8, 8)),
    "mlp": (mlp, (8,)),
    "encoder": (encoder, (5, 16)),
}
"""A module, and the shape of one example."""


def on_npu(module: Any, device: sdk.Device, **options: Any) -> Any:
    return torch.compile(module, backend="npu", options={"device": device, **options})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that go to the device from now on."""
    loaded: list[Any] = []
    load = sdk.Device.load

    def noted(*arguments: Any, **options: Any) -> Any:
        loaded.append(load(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(sdk.Device, "load", noted)
    return loaded


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_compiled_module_computes_what_pytorch_does(name: str, mode: Any, device: sdk.Device) -> None:
    make, shape = NETS[name]
    module = make()
    compiled = on_npu(module, device)
    with mode():
        for batch in (2, 3, 5, 1):
            x = torch.randn(batch, *shape)
            torch.testing.assert_close(compiled(x), module(x), **TOLERANCE)


def test_it_is_among_the_backends_that_pytorch_lists() -> None:
    assert "npu" in torch.compiler.list_backends()


def test_parameters_go_to_the_device_once_for_all_calls_and_shapes(device: sdk.Device, loads: list[Any]) -> None:
    module = mlp()
    compiled = on_npu(module, device)
    with torch.inference_mode():
        for batch in (4, 4, 4, 6, 7, 9):
            compiled(torch.randn(batch, 8))
    assert len(loads) == 2  # the first shape by itself, then a program for every other one
    for model in loads:
        assert [len(info.shape) for info in model.inputs] == [2]  # the example alone; no weight is an input


@pytest.mark.parametrize("change", ["in place", "loaded", "replaced", "buffer"])
def test_parameters_that_changed_are_taken_again(change: str, device: sdk.Device, loads: list[Any]) -> None:
    module = cnn()
    compiled, x = on_npu(module, device), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        before = compiled(x)
        if change == "in place":
            module[0].weight.mul_(2)
        elif change == "loaded":
            module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
        elif change == "replaced":
            module[5].weight = nn.Parameter(torch.randn(10, 64))
        else:
            module[1].running_mean.add_(1)
        after = compiled(x)
        torch.testing.assert_close(after, module(x), **TOLERANCE)
        assert not torch.equal(before, after)
        for _ in range(3):
            compiled(x)
    assert len(loads) == 2


def test_a_mask_hides_what_it_hides_in_pytorch(device: sdk.Device) -> None:
    module, x = encoder(), torch.randn(2, 5, 16)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.no_grad():
        for options in (
            {"src_key_padding_mask": padding},
            {"mask": causal, "is_causal": True},
            {"mask": causal, "src_key_padding_mask": padding.float().masked_fill(padding, -torch.inf)},
        ):
            torch.testing.assert_close(on_npu(module, device)(x, **options), module(x, **options), **TOLERANCE)


@pytest.mark.parametrize("options", [{"norm_first": True}, {"activation": "gelu"}, {"layer_norm_eps": 0.1}])
def test_an_encoder_layers_options_mean_the_same(options: dict[str, Any], device: sdk.Device) -> None:
    module, x = encoder(**options), torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(on_npu(module, device)(x), module(x), **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_attention_gives_its_weights_as_asked(options: dict[str, Any], device: sdk.Device) -> None:
    module, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        found, expected = on_npu(module, device)(x, x, x, **options), module(x, x, x, **options)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
    if expected[1] is None:
        assert found[1] is None
    else:
        torch.testing.assert_close(found[1], expected[1], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_floats_go_there_and_back(dtype: Any, device: sdk.Device) -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(dtype), torch.randn(2, 4, dtype=dtype)
    with torch.no_grad():
        found = on_npu(module, device)(x)
        assert found.dtype is dtype
        torch.testing.assert_close(found, module(x), rtol=2e-2, atol=2e-2)


def several(x: Any, y: Any, scale: int) -> Any:
    return x * scale, x, None, 3, (x + 1).sum(), x.shape[0], x + 1


def test_every_kind_of_output_comes_back_in_its_place(device: sdk.Device) -> None:
    compiled = on_npu(several, device)
    with torch.no_grad():
        for length, scale in ((3, 2), (4, 2), (5, 3), (5, 4)):
            x = torch.randn(length)
            for found, expected in zip(compiled(x, x, scale), several(x, x, scale), strict=True):
                if isinstance(expected, torch.Tensor):
                    torch.testing.assert_close(found, expected, **TOLERANCE)
                else:
                    assert found == expected


def test_a_graph_that_breaks_runs_in_its_parts(device: sdk.Device, loads: list[Any]) -> None:
    def broken(x: Any) -> Any:
        y = torch.relu(x)
        torch._dynamo.graph_break()
        return y + 1

    x = torch.randn(3)
    with torch.no_grad():
        torch.testing.assert_close(on_npu(broken, device)(x), broken(x))
    assert len(loads) == 2


def test_a_gradient_through_the_device_is_refused_when_it_is_asked_for(device: sdk.Device) -> None:
    module, x = mlp(), torch.randn(2, 8)
    y = on_npu(module, device)(x)
    torch.testing.assert_close(y, module(x), **TOLERANCE)
    with pytest.raises(RuntimeError, match="what ran on the device has no gradient"):
        y.sum().backward()


# --- what cannot run -------------------------------------------------------------------------------------------------


def drawn(x: Any) -> Any:
    """What the device has no command for; where the chances are 0 and 1, PyTorch draws what is expected."""
    return torch.bernoulli(x) + 1


REFUSED: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "an operator": (lambda: drawn, (3, 3), "Bernoulli .*the operator is not supported"),
    "a type": (lambda: nn.Linear(4, 4).double(), (2, 4), "float64 is not supported"),
    "training": (lambda: nn.BatchNorm2d(2).train(), (1, 2, 3, 3), "writes to 'l_.*buffers_.*call eval"),
    "writing to an input": (lambda: lambda x: x.add_(1), (3,), "writes to .*return the new value"),
    "dropout in training": (lambda: lambda x: functional.dropout(x, 0.5, True), (3,), "Dropout .*training mode"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_device_cannot_run_is_refused_with_the_reason(what: str, device: sdk.Device) -> None:
    make, shape, message = REFUSED[what]
    x = torch.randn(shape, dtype=torch.float64 if what == "a type" else torch.float32)
    with torch.no_grad(), pytest.raises(UnsupportedModel, match=message):
        on_npu(make(), device)(x)


def test_where_its_user_allows_it_a_graph_runs_in_pytorch_with_one_warning(device: sdk.Device) -> None:
    compiled, x = on_npu(drawn, device, fallback="eager"), torch.eye(3)
    with torch.no_grad():
        with pytest.warns(EagerFallbackWarning, match=r"a graph runs in PyTorch, not on the device: [^£]*Bernoulli"):
            torch.testing.assert_close(compiled(x), drawn(x))
        with warnings.catch_warnings():
            warnings.simplefilter("error", EagerFallbackWarning)
            torch.testing.assert_close(compiled(x), drawn(x))


def test_where_its_user_allows_it_nodes_run_on_the_host(device: sdk.Device, loads: list[Any]) -> None:
    module_of_extra("onnxruntime", "models")
    with torch.no_grad():
        y = on_npu(drawn, device, fallback="cpu")(torch.full((3,), 0.5))
    assert set(y.tolist()) <= {1, 2}
    assert {(entry.op, str(entry.where)) for entry in loads[0].report} >= {("Bernoulli", "host"), ("Add", "device")}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"mode": "max-autotune"}, TypeError, "'mode' is not supported by the backend npu"),
        ({"options": {"fall_back": "eager"}}, ValueError, 'no option \'fall_back\'; it has "device" and "fallback"'),
        ({"options": {"fallback": "gpu"}}, ValueError, "fallback must be one of"),
        ({"options": {"device": 3}}, TypeError, "device must be an sdk.Device or an address, got int"),
    ],
)
def test_wrong_options_say_what_is_wrong(arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        torch_backend.npu(torch.fx.symbolic_trace(nn.ReLU()), [], **arguments)


def test_a_compiled_module_that_is_let_go_leaves_the_device(device: sdk.Device, loads: list[Any]) -> None:
    import weakref

    with torch.no_grad():
        on_npu(mlp(), device)(torch.randn(2, 8))
    (there,) = [weakref.ref(model) for model in loads]
    loads.clear()
    torch._dynamo.reset()
    gc.collect()
    assert there() is None


# --- dev.load --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_module_is_loaded_with_what_it_is_traced_on(name: str, device: sdk.Device) -> None:
    make, shape = NETS[name]
    module, x = make(), torch.randn(2, *shape)
    model = device.load(module, (x,))
    (found,) = model(x.numpy()).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), **TOLERANCE)


def test_inputs_by_name_are_the_models_inputs(device: sdk.Device) -> None:
    class Affine(nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, shift: Any) -> Any:
            return 2 * x + shift

    model = device.load(Affine().eval(), {"shift": torch.ones(3), "x": torch.zeros(2, 3)})
    assert {info.name: info.shape for info in model.inputs} == {"x": (2, 3), "shift": (3,)}
    (found,) = model(x=np.ones((2, 3), np.float32), shift=np.ones(3, np.float32)).values()
    np.testing.assert_array_equal(found, np.full((2, 3), 3, np.float32))


def test_an_exported_program_keeps_its_dynamic_dimensions(device: sdk.Device) -> None:
    module = mlp()
    program = torch.export.export(module, (torch.randn(2, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    model = device.load(program)
    for batch in (2, 5):
        x = torch.randn(batch, 8)
        (found,) = model(x.numpy()).values()
        np.testing.assert_allclose(found, module(x).detach().numpy(), **TOLERANCE)


def test_a_module_that_cannot_be_loaded_says_what_to_do(device: sdk.Device) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(TypeError, match=r"takes example_inputs, from which it is traced: dev.load\(module, \(x,\)\)"):
        device.load(mlp())
    with pytest.raises(UnsupportedModel, match=r"in training mode.*call module.eval\(\)"):
        device.load(mlp().train(), (x,))
    with pytest.raises(UnsupportedModel, match="the module cannot be traced: "):
        device.load(mlp(), (torch.randn(2, 7),))
    with pytest.raises(TypeError, match="an ExportedProgram has its own"):
        device.load(torch.export.export(mlp(), (x,)), (x,))
    torch.backends.mha.set_fastpath_enabled(True)
    device.load(encoder(), (torch.randn(2, 5, 16),))
    assert torch.backends.mha.get_fastpath_enabled()
