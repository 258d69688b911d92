"""Einsum against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from sdk.compiler.compiled import CompiledProgram
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32


def compiled(equation: str, *arrays: NDArray[Any]) -> CompiledProgram:
    names = [f"x{i}" for i in range(len(arrays))]
    inputs = {name: (array.dtype.type, array.shape) for name, array in zip(names, arrays, strict=True)}
    return compile_model(net(equation, inputs, arrays[0].dtype.type))


def net(equation: str, inputs: dict[str, Any], dtype: Any) -> onnx.ModelProto:
    return model([node("Einsum", list(inputs), ["y"], equation=equation)], inputs, {"y": dtype})


def real(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F32)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij->ij", [(2, 3)]),
        ("ij->ji", [(2, 3)]),
        ("ij", [(2, 3)]),
        ("ba", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ij->i", [(2, 3)]),
        ("ii->i", [(3, 3)]),
        ("ii", [(3, 3)]),
        ("iji->j", [(3, 2, 3)]),
        ("iii->i", [(3, 3, 3)]),
        ("iijj->ij", [(2, 2, 3, 3)]),
        ("ii->i", [(1, 1)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("...ij->...ji", [(2, 3, 4, 5)]),
        ("i,i->", [(3,), (3,)]),
        ("i,i->i", [(3,), (3,)]),
        ("i,j->ij", [(3,), (4,)]),
        ("i,j", [(3,), (4,)]),
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        (" ij , jk -> ki ", [(2, 3), (3, 4)]),
        ("ij,kj->ik", [(2, 3), (4, 3)]),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bhij,bhjd->bihd", [(2, 3, 4, 6), (2, 3, 6, 5)]),
        ("bij,jk->bki", [(2, 3, 4), (4, 5)]),
        ("ijkl,klm->ijm", [(2, 3, 4, 5), (4, 5, 6)]),
        ("ij,ik->jk", [(4, 2), (4, 3)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("ijk,k->ij", [(2, 3, 4), (4,)]),
        ("ij,kl->ik", [(2, 3), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 2)]),
        ("...i,...i->...", [(2, 3, 4), (4,)]),
        ("i...,j...", [(2, 4), (3, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("i,ij,j->", [(2,), (2, 3), (3,)]),
        ("i,j,k->kji", [(2,), (3,), (4,)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
        ("ij,ij->ij", [(1, 3), (2, 3)]),
        (",i->i", [(), (3,)]),
        ("abcdefg,abcdefg->abcdefg", [(1, 2, 1, 2, 1, 2, 2), (1, 2, 1, 2, 1, 2, 2)]),
        ("abcdefgh,abcdefgh->abcdefg", [(1, 2, 1, 2, 1, 2, 2, 3), (1, 2, 1, 2, 1, 2, 2, 3)]),
    ],
)
def test_equations(equation: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [real(*shape) for shape in shapes]
    result = run(compiled(equation, *arrays), {f"x{i}": array for i, array in enumerate(arrays)})["y"]
    expected = np.einsum(equation.replace(" ", ""), *arrays)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij,jk->", "i...,k..."])
def test_whole_numbers(equation: str) -> None:
    a, b = np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(9, dtype=np.int32).reshape(3, 3)
    result = run(compiled(equation, a, b), {"x0": a, "x1": b})["y"]
    np.testing.assert_array_equal(result, np.einsum(equation, a, b))


def test_a_product_of_matrices_is_one_command() -> None:
    image = compiled("bij,bjk->bik", real(2, 3, 4), real(2, 4, 5)).image
    assert [command.kind for command in parse(image).commands] == [CommandKind.MATMUL]


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij->i", [(2, 3), (2, 3)], "is about 1 operands, not 2"),
        ("ij->i", [(2,)], "has 2 labels for an operand of rank 1"),
        ("i->i", [(2, 3)], "has 1 labels for an operand of rank 2"),
        ("ij->k", [(2, 3)], "one that no operand has"),
        ("ij->ii", [(2, 3)], "has a label twice"),
        ("ii->i", [(2, 3)], "stands for 2 and 3"),
        ("ij,jk->ik", [(2, 3), (4, 5)], "dimensions of one label differ"),
        ("i1->i", [(2, 3)], "is none"),
    ],
)
def test_equations_that_do_not_go_with_their_operands(
    equation: str, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        compiled(equation, *(real(*shape) for shape in shapes))
