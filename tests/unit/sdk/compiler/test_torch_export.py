"""What is said of PyTorch's modules where PyTorch is not there; tests/slow/test_torch.py has the rest."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.metadata import entry_points
from typing import Any

import pytest

import sdk
from sdk.compiler import torch_export
from tests.support.models import model, node
from tests.support.rigs import in_process_rig


class Module:
    """Stands for a torch.nn.Module."""


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something imported PyTorch, of which only the class of modules matters here."""
    fake = types.SimpleNamespace(nn=types.SimpleNamespace(Module=Module))
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.delitem(sys.modules, "torch.export", raising=False)


def test_only_a_module_comes_from_torch(torch: None) -> None:
    assert torch_export.comes_from_torch(Module())
    assert not torch_export.comes_from_torch("net.onnx")


def test_without_pytorch_nothing_comes_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not torch_export.comes_from_torch(Module())


@pytest.mark.parametrize("missing", [("torch",), ("onnxscript",), ("torch", "onnxscript")])
def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    missing: tuple[str, ...], torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> Any:
        return None if name in missing else name

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with in_process_rig() as rig, rig.device() as device, pytest.raises(sdk.UnsupportedModel) as caught:
        device.load(Module(), (1,))
    assert str(caught.value).startswith(f"{' and '.join(missing)} must be installed")
    assert (caught.value.code, caught.value.remedy) == ("missing-extra", "pip install 'npu-sdk[torch]'")


def test_example_inputs_go_with_modules_alone() -> None:
    net = model([node("Relu", ["x"], ["y"])], {"x": ("float32", [2])}, {"y": "float32"})
    refused = pytest.raises(TypeError, match=r"example_inputs go with a torch\.nn\.Module, not with a ModelProto")
    with in_process_rig() as rig, rig.device() as device, refused:
        device.load(net, (1,))


def test_pytorch_finds_the_backend_by_its_entry_point() -> None:
    (found,) = entry_points(group="torch_dynamo_backends", name="npu")
    assert found.value == "sdk.torch_backend:npu"
