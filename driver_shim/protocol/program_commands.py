"""The commands a program is made of: kinds, function codes, attribute layouts, operands.

Facts only. Each kind states the operators of the ONNX specification that it carries out; its exact meaning is the
golden kernel of the same name. Attributes hold all that the outputs' types depend on beside the operands.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from driver_shim.protocol.layout import Layout, array, f32, i32, reserved, u8, u16, u32

MAX_RANK = 8
MAX_SPATIAL = 3
"""Spatial dimensions of convolution and pooling (a 1-D convolution uses the first)."""


class CommandKind(enum.IntEnum):
    """What a command does."""

    MATMUL = 0x01
    """MatMul, Gemm; with bias and activation."""
    CONV = 0x02
    """Conv; with bias, something to add, and activation."""
    POOL = 0x03
    """MaxPool, AveragePool, LpPool."""
    QMATMUL = 0x08
    """QLinearMatMul; with int32 bias and ReLU."""
    QCONV = 0x09
    """QLinearConv; with int32 bias and ReLU."""
    QUANTIZE = 0x0A
    """QuantizeLinear."""
    DEQUANTIZE = 0x0B
    """DequantizeLinear."""
    UNARY = 0x10
    """Element-wise functions of one operand."""
    BINARY = 0x11
    """Element-wise functions of two operands, broadcast."""
    WHERE = 0x12
    """Where."""
    CAST = 0x13
    """Cast."""
    REDUCE = 0x18
    """ReduceSum and its relatives, global pooling."""
    ARGUMENT = 0x19
    """ArgMax, ArgMin."""
    SOFTMAX = 0x1A
    """Softmax, LogSoftmax."""
    COPY = 0x20
    """Identity, Reshape and all that only rename a shape."""
    TRANSPOSE = 0x21
    """Transpose."""
    SLICE = 0x22
    """Slice; Split is several."""
    CONCAT = 0x23
    """Concat."""
    GATHER = 0x24
    """Gather."""
    PAD = 0x25
    """Pad."""
    EXPAND = 0x26
    """Expand."""
    RECURRENT = 0x30
    """RNN, GRU, LSTM: all steps, one or both directions."""
    ATTENTION = 0x31
    """Attention: products, mask, Softmax, with a cache's past and present."""
    LAYER_NORM = 0x32
    """LayerNormalization and its relatives over any dimensions."""
    ROTARY = 0x33
    """RotaryEmbedding."""
    TENSOR_SCATTER = 0x34
    """TensorScatter; updates a state in place."""
    LINEAR_ATTENTION = 0x35
    """LinearAttention: its rule is what the operands decay and rate make of it."""
    CACHE_APPEND = 0x36
    """New keys or values of several sequences, written into a state that has those of all, by blocks."""
    CACHE_ATTENTION = 0x37
    """Attention over keys and values that CACHE_APPEND has written."""
    RESIZE = 0x40
    """Resize, Upsample."""
    CONV_TRANSPOSE = 0x41
    """ConvTranspose, Col2Im; with bias and activation."""
    UNPOOL = 0x42
    """MaxUnpool."""
    GRID_SAMPLE = 0x43
    """GridSample."""
    ROI_ALIGN = 0x44
    """RoiAlign."""
    ROI_POOL = 0x45
    """MaxRoiPool."""
    DEFORM_CONV = 0x46
    """DeformConv; with bias."""
    GATHER_ELEMENTS = 0x50
    """GatherElements."""
    GATHER_ND = 0x51
    """GatherND."""
    SCATTER_ELEMENTS = 0x52
    """ScatterElements, Scatter."""
    SCATTER_ND = 0x53
    """ScatterND."""
    TOP_K = 0x54
    """TopK."""
    CUMULATE = 0x55
    """CumSum, CumProd."""
    DETERMINANT = 0x56
    """Det."""
    BITCAST = 0x57
    """BitCast."""
    MATMUL_INTEGER = 0x60
    """MatMulInteger."""
    CONV_INTEGER = 0x61
    """ConvInteger."""
    DYNAMIC_QUANTIZE = 0x62
    """DynamicQuantizeLinear."""
    QBINARY = 0x63
    """onnxruntime's QLinearAdd and QLinearMul, broadcast."""
    LOOKUP = 0x64
    """Element-wise functions of 8-bit integers, by a table of their 256 values."""
    MATMUL_NBITS = 0x65
    """onnxruntime's MatMulNBits: weights of 4 or 8 bits with a scale for each block."""
    QPOOL = 0x66
    """onnxruntime's QLinearAveragePool."""


class ScatterMode(enum.IntEnum):
    """Modes of TENSOR_SCATTER, by the names of the ONNX attribute."""

    LINEAR = 0
    CIRCULAR = 1


class Activation(enum.IntEnum):
    """What MATMUL, CONV and CONV_TRANSPOSE apply to a sum before its one rounding."""

    NONE = 0
    RELU = 1
    CLIP = 2
    """To [low, high]."""
    SIGMOID = 3
    TANH = 4


class UnaryFunction(enum.IntEnum):
    """Functions of UNARY, by the names of their ONNX operators."""

    ABS = 1
    NEG = 2
    SIGN = 3
    FLOOR = 4
    CEIL = 5
    ROUND = 6
    EXP = 7
    LOG = 8
    SQRT = 9
    RECIPROCAL = 10
    TANH = 11
    SIGMOID = 12
    ERF = 13
    RELU = 14
    LEAKY_RELU = 15
    """alpha: slope of the negative side."""
    ELU = 16
    """alpha."""
    HARD_SIGMOID = 17
    """max(0, min(1, alpha · x + beta))."""
    CLIP = 18
    """To [alpha, beta]."""
    SOFTPLUS = 19
    NOT = 20
    SIN = 21
    COS = 22
    GELU = 0x40
    """x / 2 · (1 + erf(x / √2))."""
    GELU_TANH = 0x41
    """Gelu's approximation by tanh."""
    SWISH = 0x42
    """x · sigmoid(alpha · x)."""
    HARD_SWISH = 0x43
    MISH = 0x44
    SELU = 0x45
    """alpha; beta is the operator's gamma."""
    CELU = 0x46
    """alpha."""
    SOFTSIGN = 0x47
    THRESHOLDED_RELU = 0x48
    """alpha: what is not above it becomes 0."""
    TAN = 0x60
    ASIN = 0x61
    ACOS = 0x62
    ATAN = 0x63
    SINH = 0x64
    COSH = 0x65
    ASINH = 0x66
    ACOSH = 0x67
    ATANH = 0x68
    IS_NAN = 0x69
    """Gives bool."""
    IS_INF = 0x6A
    """Gives bool; infinities below zero count where alpha is not 0, those above where beta is not 0."""
    BITWISE_NOT = 0x6B
    SHRINK = 0x6C
    """x + beta below -alpha, x - beta above alpha, else 0."""


class BinaryFunction(enum.IntEnum):
    """Functions of BINARY, by the names of their ONNX operators."""

    ADD = 1
    SUB = 2
    MUL = 3
    DIV = 4
    """Integers: rounded towards zero; a zero divisor fails the command."""
    POW = 5
    """Integers: wraps; a negative power of zero fails the command."""
    MIN = 6
    MAX = 7
    EQUAL = 8
    LESS = 9
    LESS_OR_EQUAL = 10
    GREATER = 11
    GREATER_OR_EQUAL = 12
    AND = 13
    OR = 14
    XOR = 15
    PRELU = 0x40
    """a where it is not below 0, else a · b."""
    MOD = 0x60
    """The sign that of the divisor; a zero divisor of integers fails the command."""
    FMOD = 0x61
    """The sign that of the dividend (C's fmod and %); a zero divisor of integers fails the command."""
    SHIFT_LEFT = 0x62
    SHIFT_RIGHT = 0x63
    BITWISE_AND = 0x64
    BITWISE_OR = 0x65
    BITWISE_XOR = 0x66


class QBinaryFunction(enum.IntEnum):
    """Functions of QBINARY."""

    ADD = 1
    MUL = 2


class ReduceFunction(enum.IntEnum):
    """Functions of REDUCE."""

    SUM = 1
    MEAN = 2
    MAX = 3
    MIN = 4
    SUM_SQUARE = 5
    L1 = 6
    L2 = 7
    LOG_SUM_EXP = 8
    PROD = 0x60


class ArgumentFunction(enum.IntEnum):
    """Functions of ARGUMENT."""

    MAX = 1
    MIN = 2


class ScatterReduction(enum.IntEnum):
    """What SCATTER_ELEMENTS and SCATTER_ND do with the element that is there."""

    NONE = 0
    """Replaced; of several updates for one element, the last in row-major order."""
    ADD = 1
    MUL = 2
    MAX = 3
    MIN = 4


class CumulateFunction(enum.IntEnum):
    """Functions of CUMULATE."""

    SUM = 1
    PROD = 2


class PoolFunction(enum.IntEnum):
    """Functions of POOL."""

    MAX = 1
    """The only one with a second output, of indices."""
    AVERAGE = 2
    LP = 3


class Cell(enum.IntEnum):
    """Cells of RECURRENT, by the names of their ONNX operators."""

    RNN = 1
    GRU = 2
    LSTM = 3


class CellDirection(enum.IntEnum):
    """Directions of RECURRENT."""

    FORWARD = 0
    REVERSE = 1
    BIDIRECTIONAL = 2


class CellActivation(enum.IntEnum):
    """Activations of RECURRENT, by their names in the ONNX specification; 0 stands for none."""

    RELU = 1
    TANH = 2
    SIGMOID = 3
    AFFINE = 4
    """alpha · x + beta."""
    LEAKY_RELU = 5
    THRESHOLDED_RELU = 6
    SCALED_TANH = 7
    """alpha · tanh(beta · x)."""
    HARD_SIGMOID = 8
    ELU = 9
    SOFTSIGN = 10
    SOFTPLUS = 11


class Scores(enum.IntEnum):
    """What the last output of ATTENTION holds, by the numbers of the ONNX attribute qk_matmul_output_mode."""

    PRODUCTS = 0
    CAPPED = 1
    BIASED = 2
    PROBABILITIES = 3


class PadMode(enum.IntEnum):
    """Modes of PAD, by the names of the ONNX attribute."""

    CONSTANT = 0
    REFLECT = 1
    EDGE = 2
    WRAP = 3


class Interpolation(enum.IntEnum):
    """How RESIZE and GRID_SAMPLE make an element of those around its place, by the names of ONNX's `mode`."""

    NEAREST = 0
    LINEAR = 1
    CUBIC = 2


class GridPadding(enum.IntEnum):
    """What GRID_SAMPLE finds outside of the data, by the names of the ONNX attribute `padding_mode`."""

    ZEROS = 0
    BORDER = 1
    REFLECTION = 2


class Coordinates(enum.IntEnum):
    """Where RESIZE finds an element's place, by the names of the ONNX attribute `coordinate_transformation_mode`."""

    HALF_PIXEL = 0
    HALF_PIXEL_SYMMETRIC = 1
    PYTORCH_HALF_PIXEL = 2
    ALIGN_CORNERS = 3
    ASYMMETRIC = 4
    TF_HALF_PIXEL_FOR_NN = 5
    TF_CROP_AND_RESIZE = 6


class NearestMode(enum.IntEnum):
    """Which element is the nearest to a place, by the names of the ONNX attribute `nearest_mode`."""

    ROUND_PREFER_FLOOR = 0
    ROUND_PREFER_CEIL = 1
    FLOOR = 2
    CEIL = 3


MAX_CELL_ACTIVATIONS = 6
"""Of both directions of an LSTM: (f, g, h) each."""

_WINDOW = (
    "strides" / array(MAX_SPATIAL, u32),
    "dilations" / array(MAX_SPATIAL, u32),
    "pads_begin" / array(MAX_SPATIAL, u32),
    "pads_end" / array(MAX_SPATIAL, u32),
)
"""How a window moves: unused spatial dimensions hold stride and dilation 1, padding 0."""

_SHAPE = ("rank" / u8, reserved(7), "shape" / array(MAX_RANK, u32))
"""A target shape: unused dimensions hold 0."""

_NONE = Layout("no_attributes", 8, reserved(8))

ATTRIBUTES: dict[CommandKind, Layout] = {
    CommandKind.MATMUL: Layout(
        "matmul",
        24,
        "transpose_a" / u8,
        "transpose_b" / u8,
        "activation" / u8,
        reserved(5),
        "alpha" / f32,
        "beta" / f32,
        "low" / f32,
        "high" / f32,
    ),
    CommandKind.CONV: Layout(
        "conv", 64, "group" / u32, "activation" / u8, reserved(3), "low" / f32, "high" / f32, *_WINDOW
    ),
    CommandKind.POOL: Layout(
        "pool",
        72,
        "function" / u8,
        "count_include_pad" / u8,
        "ceil_mode" / u8,
        "column_major" / u8,
        "p" / u32,
        "kernel" / array(MAX_SPATIAL, u32),
        *_WINDOW,
        reserved(4),
    ),
    CommandKind.QMATMUL: Layout("qmatmul", 8, "relu" / u8, reserved(7)),
    CommandKind.QCONV: Layout("qconv", 56, "group" / u32, "relu" / u8, reserved(3), *_WINDOW),
    CommandKind.QUANTIZE: Layout("quantize", 8, "axis" / u32, "block" / u32),
    CommandKind.DEQUANTIZE: Layout("dequantize", 8, "axis" / u32, "block" / u32),
    CommandKind.UNARY: Layout("unary", 16, "function" / u16, reserved(6), "alpha" / f32, "beta" / f32),
    CommandKind.BINARY: Layout("binary", 8, "function" / u16, reserved(6)),
    CommandKind.WHERE: _NONE,
    CommandKind.CAST: Layout("cast", 8, "dtype" / u16, reserved(6)),
    CommandKind.REDUCE: Layout("reduce", 8, "function" / u16, "keep" / u8, reserved(1), "axes" / u32),
    CommandKind.ARGUMENT: Layout("argument", 8, "function" / u16, "select_last" / u8, "keep" / u8, "axis" / u32),
    CommandKind.SOFTMAX: Layout("softmax", 8, "axis" / u32, "logarithm" / u8, reserved(3)),
    CommandKind.COPY: Layout("copy", 40, *_SHAPE),
    CommandKind.TRANSPOSE: Layout("transpose", 8, "permutation" / array(MAX_RANK, u8)),
    CommandKind.SLICE: Layout(
        "slice",
        96,
        "starts" / array(MAX_RANK, i32),
        "steps" / array(MAX_RANK, i32),
        "extents" / array(MAX_RANK, u32),
    ),
    CommandKind.CONCAT: Layout("concat", 8, "axis" / u32, reserved(4)),
    CommandKind.GATHER: Layout("gather", 8, "axis" / u32, reserved(4)),
    CommandKind.PAD: Layout(
        "pad", 72, "mode" / u8, reserved(7), "begins" / array(MAX_RANK, u32), "ends" / array(MAX_RANK, u32)
    ),
    CommandKind.EXPAND: Layout("expand", 40, *_SHAPE),
    CommandKind.RECURRENT: Layout(
        "recurrent",
        64,
        "cell" / u8,
        "direction" / u8,
        "input_forget" / u8,
        "linear_before_reset" / u8,
        "clip" / f32,
        "activations" / array(MAX_CELL_ACTIVATIONS, u8),
        reserved(2),
        "alphas" / array(MAX_CELL_ACTIVATIONS, f32),
        "betas" / array(MAX_CELL_ACTIVATIONS, f32),
    ),
    CommandKind.ATTENTION: Layout(
        "attention",
        32,
        "scale" / f32,
        "softcap" / f32,
        "query_heads" / u32,
        "key_heads" / u32,
        "left_window" / i32,
        "right_window" / i32,
        "causal" / u8,
        "scores" / u8,
        reserved(6),
    ),
    CommandKind.LAYER_NORM: Layout(
        "layer_norm", 16, "axes" / u32, "epsilon" / f32, "root_mean_square" / u8, reserved(7)
    ),
    CommandKind.ROTARY: Layout("rotary", 8, "heads" / u32, "interleaved" / u8, reserved(3)),
    CommandKind.TENSOR_SCATTER: Layout("tensor_scatter", 8, "axis" / u32, "mode" / u8, reserved(3)),
    CommandKind.LINEAR_ATTENTION: Layout(
        "linear_attention", 16, "scale" / f32, "query_heads" / u32, "key_heads" / u32, reserved(4)
    ),
    CommandKind.CACHE_APPEND: Layout("cache_append", 16, "plane" / u32, "heads" / u32, "ring" / u32, reserved(4)),
    CommandKind.CACHE_ATTENTION: Layout(
        "cache_attention",
        32,
        "scale" / f32,
        "softcap" / f32,
        "query_heads" / u32,
        "key_plane" / u32,
        "value_plane" / u32,
        "left_window" / i32,
        "ring" / u32,
        "causal" / u8,
        reserved(3),
    ),
    CommandKind.RESIZE: Layout(
        "resize",
        144,
        "mode" / u8,
        "coordinates" / u8,
        "nearest" / u8,
        "exclude_outside" / u8,
        "antialias" / u8,
        reserved(3),
        "cubic" / f32,
        "extrapolation" / f32,
        "extents" / array(MAX_RANK, u32),
        "scales" / array(MAX_RANK, f32),
        "starts" / array(MAX_RANK, f32),
        "ends" / array(MAX_RANK, f32),
    ),
    CommandKind.CONV_TRANSPOSE: Layout(
        "conv_transpose",
        80,
        "group" / u32,
        "activation" / u8,
        reserved(3),
        "low" / f32,
        "high" / f32,
        *_WINDOW,
        "output_padding" / array(MAX_SPATIAL, u32),
        reserved(4),
    ),
    CommandKind.UNPOOL: Layout("unpool", 40, *_SHAPE),
    CommandKind.GRID_SAMPLE: Layout("grid_sample", 8, "mode" / u8, "padding" / u8, "align_corners" / u8, reserved(5)),
    CommandKind.ROI_ALIGN: Layout(
        "roi_align",
        24,
        "function" / u8,
        "half_pixel" / u8,
        reserved(2),
        "sampling_ratio" / u32,
        "output_height" / u32,
        "output_width" / u32,
        "spatial_scale" / f32,
        reserved(4),
    ),
    CommandKind.ROI_POOL: Layout(
        "roi_pool", 16, "output_height" / u32, "output_width" / u32, "spatial_scale" / f32, reserved(4)
    ),
    CommandKind.DEFORM_CONV: Layout("deform_conv", 56, "group" / u32, "offset_group" / u32, *_WINDOW),
    CommandKind.GATHER_ELEMENTS: Layout("gather_elements", 8, "axis" / u32, reserved(4)),
    CommandKind.GATHER_ND: Layout("gather_nd", 8, "batch_dims" / u32, reserved(4)),
    CommandKind.SCATTER_ELEMENTS: Layout("scatter_elements", 8, "axis" / u32, "reduction" / u8, reserved(3)),
    CommandKind.SCATTER_ND: Layout("scatter_nd", 8, "reduction" / u8, reserved(7)),
    CommandKind.TOP_K: Layout("top_k", 16, "axis" / u32, "k" / u32, "largest" / u8, reserved(7)),
    CommandKind.CUMULATE: Layout("cumulate", 8, "function" / u16, "exclusive" / u8, "reverse" / u8, "axis" / u32),
    CommandKind.DETERMINANT: _NONE,
    CommandKind.BITCAST: Layout("bitcast", 8, "dtype" / u16, reserved(6)),
    CommandKind.MATMUL_INTEGER: _NONE,
    CommandKind.CONV_INTEGER: Layout("conv_integer", 56, "group" / u32, reserved(4), *_WINDOW),
    CommandKind.DYNAMIC_QUANTIZE: _NONE,
    CommandKind.QBINARY: Layout("qbinary", 8, "function" / u16, reserved(6)),
    CommandKind.LOOKUP: _NONE,
    CommandKind.MATMUL_NBITS: Layout("matmul_nbits", 8, "block" / u32, "bits" / u8, reserved(3)),
    CommandKind.QPOOL: Layout(
        "qpool",
        64,
        "count_include_pad" / u8,
        "ceil_mode" / u8,
        reserved(2),
        "kernel" / array(MAX_SPATIAL, u32),
        *_WINDOW,
    ),
}
"""Axes count from 0, never from the end; `axes` is a mask: bit i stands for dimension i.

`keep` leaves reduced dimensions in, as ones.
`dtype` of CAST and BITCAST is a `WireType`.
`block` of QUANTIZE and DEQUANTIZE is how many elements along the axis share a scale; 0 where the scale has no blocks.
RESIZE: `cubic` is ONNX's `cubic_coeff_a`; `starts` and `ends` are its `roi`, by dimension; unused dimensions hold 0.
ROI_ALIGN: `function` is a `PoolFunction`.
RECURRENT: a `clip` of 0 clips nothing.
ATTENTION: a `softcap` of 0 caps nothing, a window of -1 is open; heads are 0 where operands have a dimension for them.
CACHE_APPEND and CACHE_ATTENTION likewise; a `ring` of 0 is none, of n one in which position p lies at place p mod n.
"""

ROW_FIELDS = ("slot", "past", "count")
"""The columns of `rows`: which table a sequence has, how many tokens it has, how many come with this command."""


class Operands(NamedTuple):
    """Operands of one kind of command, in order."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    repeats: bool = False
    """True when the last required operand may occur several times."""
    outputs: int = 1
    """The most outputs that a command of the kind may have; it has the first of them, at least one."""
    in_place: int | None = None
    """The input that the first output may be, where it is a state: the command updates it."""
    states: tuple[int, ...] = ()
    """Inputs that are states, nothing else; one that is `in_place` is the first output."""
    bound: tuple[int, ...] = ()
    """Inputs that are inputs of the entry point: the device reads them before it begins, or they live on."""


_QUANTISED_LEFT = ("x", "w", "x_scale", "x_zero_point", "w_scale", "w_zero_point", "y_scale", "y_zero_point")

OPERANDS: dict[CommandKind, Operands] = {
    CommandKind.MATMUL: Operands(("a", "b"), ("bias",)),
    CommandKind.CONV: Operands(("x", "w"), ("bias", "addend")),
    CommandKind.POOL: Operands(("x",), outputs=2),
    CommandKind.QMATMUL: Operands(_QUANTISED_LEFT, ("bias",)),
    CommandKind.QCONV: Operands(_QUANTISED_LEFT, ("bias",)),
    CommandKind.QUANTIZE: Operands(("x", "scale", "zero_point")),
    CommandKind.DEQUANTIZE: Operands(("x", "scale"), ("zero_point",)),
    CommandKind.UNARY: Operands(("x",)),
    CommandKind.BINARY: Operands(("a", "b")),
    CommandKind.WHERE: Operands(("condition", "x", "y")),
    CommandKind.CAST: Operands(("x",)),
    CommandKind.REDUCE: Operands(("x",)),
    CommandKind.ARGUMENT: Operands(("x",)),
    CommandKind.SOFTMAX: Operands(("x",)),
    CommandKind.COPY: Operands(("x",)),
    CommandKind.TRANSPOSE: Operands(("x",)),
    CommandKind.SLICE: Operands(("x",)),
    CommandKind.CONCAT: Operands(("x",), repeats=True),
    CommandKind.GATHER: Operands(("x", "indices")),
    CommandKind.PAD: Operands(("x",), ("value",)),
    CommandKind.EXPAND: Operands(("x",)),
    CommandKind.RECURRENT: Operands(
        ("x", "w", "r"), ("bias", "lengths", "initial_h", "initial_c", "peepholes"), outputs=3
    ),
    CommandKind.ATTENTION: Operands(
        ("query", "key", "value"), ("mask", "past_key", "past_value", "valid_keys"), outputs=4
    ),
    CommandKind.LAYER_NORM: Operands(("x",), ("scale", "bias"), outputs=3),
    CommandKind.ROTARY: Operands(("x", "cos", "sin"), ("positions",)),
    CommandKind.TENSOR_SCATTER: Operands(("past", "update"), ("write_indices",), in_place=0),
    CommandKind.LINEAR_ATTENTION: Operands(("query", "key", "value"), ("past", "decay", "rate"), outputs=2),
    CommandKind.CACHE_APPEND: Operands(("cache", "update", "tables", "rows"), in_place=0, states=(0,), bound=(2, 3)),
    CommandKind.CACHE_ATTENTION: Operands(("query", "keys", "values", "tables", "rows"), states=(1, 2), bound=(3, 4)),
    CommandKind.RESIZE: Operands(("x",)),
    CommandKind.CONV_TRANSPOSE: Operands(("x", "w"), ("bias",)),
    CommandKind.UNPOOL: Operands(("x", "indices")),
    CommandKind.GRID_SAMPLE: Operands(("x", "grid")),
    CommandKind.ROI_ALIGN: Operands(("x", "rois", "batch_indices")),
    CommandKind.ROI_POOL: Operands(("x", "rois")),
    CommandKind.DEFORM_CONV: Operands(("x", "w", "offset"), ("bias", "mask")),
    CommandKind.GATHER_ELEMENTS: Operands(("data", "indices")),
    CommandKind.GATHER_ND: Operands(("data", "indices")),
    CommandKind.SCATTER_ELEMENTS: Operands(("data", "indices", "updates")),
    CommandKind.SCATTER_ND: Operands(("data", "indices", "updates")),
    CommandKind.TOP_K: Operands(("x",), outputs=2),
    CommandKind.CUMULATE: Operands(("x",)),
    CommandKind.DETERMINANT: Operands(("x",)),
    CommandKind.BITCAST: Operands(("x",)),
    CommandKind.MATMUL_INTEGER: Operands(("a", "b"), ("a_zero_point", "b_zero_point")),
    CommandKind.CONV_INTEGER: Operands(("x", "w"), ("x_zero_point", "w_zero_point")),
    CommandKind.DYNAMIC_QUANTIZE: Operands(("x",), outputs=3),
    CommandKind.QBINARY: Operands(
        ("a", "b", "a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
    ),
    CommandKind.LOOKUP: Operands(("x", "table")),
    CommandKind.MATMUL_NBITS: Operands(("a", "b", "scales"), ("zero_points", "bias")),
    CommandKind.QPOOL: Operands(("x", "x_scale", "x_zero_point", "y_scale", "y_zero_point")),
}
