"""onnxruntime's own operators (domain com.microsoft) that the compiler knows, with the forms their schemas allow.

The onnx package has no schemas of them; these look like its own, as far as the reader of graphs asks.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import AttributeProto

DOMAIN = "com.microsoft"
FLOAT, INT, STRING = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING
FLOATS, INTS, STRINGS = AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS
ANY_NUMBER = 2**31 - 1


class Attribute(NamedTuple):
    """An attribute that an operator may have."""

    type: int
    required: bool = False


class Schema(NamedTuple):
    """The form of an operator: how many inputs and outputs, which attributes."""

    min_input: int
    max_input: int
    attributes: dict[str, Attribute]
    min_output: int = 1
    max_output: int = 1
    since_version: int = 1


def operator(inputs: tuple[int, int], required: dict[str, int] | None = None, /, **optional: int) -> Schema:
    """An operator with one output: (least, most) inputs, required attributes, optional ones as `name=type`."""
    attributes = {name: Attribute(kind, required=True) for name, kind in (required or {}).items()}
    attributes.update({name: Attribute(kind) for name, kind in optional.items()})
    return Schema(*inputs, attributes)


_WINDOW = {"auto_pad": STRING, "dilations": INTS, "group": INT, "kernel_shape": INTS, "pads": INTS, "strides": INTS}
_TRANSPOSED = {"transA": INT, "transB": INT, "alpha": FLOAT}

SCHEMAS: dict[str, Schema] = {
    "Attention": operator(
        (2, 7),
        {"num_heads": INT},
        do_rotary=INT,
        mask_filter_value=FLOAT,
        past_present_share_buffer=INT,
        qkv_hidden_sizes=INTS,
        rotary_embedding_dim=INT,
        scale=FLOAT,
        unidirectional=INT,
    )._replace(max_output=2),
    "BiasGelu": operator((2, 2)),
    "DequantizeLinear": operator((2, 3), axis=INT),
    "DynamicQuantizeLSTM": operator(
        (12, 12),
        hidden_size=INT,
        direction=STRING,
        activations=STRINGS,
        activation_alpha=FLOATS,
        activation_beta=FLOATS,
        clip=FLOAT,
        input_forget=INT,
    )._replace(min_output=0, max_output=3),
    "DynamicQuantizeMatMul": operator((3, 5)),
    "EmbedLayerNormalization": operator((7, 9), epsilon=FLOAT, mask_index_type=INT)._replace(max_output=3),
    "FastGelu": operator((1, 2)),
    "FusedConv": operator((2, 4), **_WINDOW, activation=STRING, activation_params=FLOATS),
    "FusedGemm": operator(
        (2, 3),
        **_TRANSPOSED,
        beta=FLOAT,
        activation=STRING,
        activation_alpha=FLOAT,
        activation_beta=FLOAT,
        activation_gamma=FLOAT,
    ),
    "FusedMatMul": operator((2, 2), **_TRANSPOSED, transBatchA=INT, transBatchB=INT),
    "GatherBlockQuantized": operator((3, 4), bits=INT, block_size=INT, gather_axis=INT, quantize_axis=INT),
    "Gelu": operator((1, 1)),
    "GroupQueryAttention": operator(
        (7, 17),
        {"num_heads": INT, "kv_num_heads": INT},
        causal=INT,
        do_rotary=INT,
        k_norm_epsilon=FLOAT,
        k_quant_type=STRING,
        kv_cache_bit_width=INT,
        local_window_size=INT,
        q_norm_epsilon=FLOAT,
        qk_norm_epsilon=FLOAT,
        qk_output=INT,
        rotary_interleaved=INT,
        scale=FLOAT,
        sliding_window_cache=INT,
        smooth_softmax=INT,
        softcap=FLOAT,
        v_quant_type=STRING,
    )._replace(max_output=4),
    "MatMulIntegerToFloat": operator((4, 7)),
    "MatMulNBits": operator(
        (3, 6), {"K": INT, "N": INT, "block_size": INT}, bits=INT, accuracy_level=INT, weight_prepacked=INT
    ),
    "MultiHeadAttention": operator(
        (1, 10), {"num_heads": INT}, mask_filter_value=FLOAT, scale=FLOAT, unidirectional=INT
    )._replace(max_output=4),
    "QAttention": operator(
        (5, 9),
        {"num_heads": INT},
        unidirectional=INT,
        past_present_share_buffer=INT,
        do_rotary=INT,
        scale=FLOAT,
        mask_filter_value=FLOAT,
    )._replace(max_output=2),
    "QGemm": operator((6, 9), **_TRANSPOSED),
    "QLinearAdd": operator((7, 8)),
    "QLinearAveragePool": operator(
        (4, 5),
        {"kernel_shape": INTS},
        auto_pad=STRING,
        ceil_mode=INT,
        channels_last=INT,
        count_include_pad=INT,
        pads=INTS,
        strides=INTS,
    ),
    "QLinearConcat": operator((3, ANY_NUMBER), {"axis": INT}),
    "QLinearConv": operator((8, 9), **_WINDOW, channels_last=INT),
    "QLinearGlobalAveragePool": operator((5, 5), channels_last=INT),
    "QLinearLeakyRelu": operator((4, 5), alpha=FLOAT),
    "QLinearMul": operator((7, 8)),
    "QLinearReduceMean": operator((4, 5), {"axes": INTS, "keepdims": INT}),
    "QLinearSigmoid": operator((4, 5)),
    "QLinearSoftmax": operator((5, 5), {"opset": INT}, axis=INT),
    "QLinearWhere": operator((9, 9)),
    "QuantizeLinear": operator((2, 3), axis=INT),
    "QuickGelu": operator((1, 1), alpha=FLOAT),
    "RotaryEmbedding": operator(
        (4, 4), interleaved=INT, is_packed_batching=INT, num_heads=INT, rotary_embedding_dim=INT, scale=FLOAT
    ),
    "SkipLayerNormalization": operator((3, 5), epsilon=FLOAT)._replace(max_output=4),
    "SkipSimplifiedLayerNormalization": operator((3, 4), epsilon=FLOAT)._replace(max_output=4),
}
"""By name."""

UNDER_ONNX: dict[str, Schema] = {
    "LayerNormalization": operator((2, 3), axis=INT, epsilon=FLOAT, stash_type=INT)._replace(max_output=3),
    "SimplifiedLayerNormalization": operator((2, 2), axis=INT, epsilon=FLOAT, stash_type=INT)._replace(max_output=2),
}
"""Those that onnxruntime has in ONNX's own domain, in opsets where ONNX has no operator of that name."""


def qualified(name: str) -> str:
    """The name by which the compiler finds an operator of this domain."""
    return f"{DOMAIN}.{name}"
