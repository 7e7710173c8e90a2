"""ONE table of operators. What an operator does to numbers is said here, and every other module asks.

    operator_of(node).homogeneous          a property of a node's operator
    operator_named("Conv").weights         the same by key: "Conv", or "com.microsoft::FusedConv"

`properties.Operator` says what each property means. Sources: the definitions of the operators
(https://onnx.ai/onnx/operators/, ONNX Runtime's ContribOperators.md). Another package enters operators of its own with
`register`, in a module that its entry point of the group ``onnxprune.operators`` names:

    register(Operator("my.domain::Scale", pointwise="unary", homogeneous=True, multiply_adds=no_products))
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnxprune.graph import multiply_adds as counts
from onnxprune.graph.multiply_adds import no_products
from onnxprune.graph.properties import Operator, Slot
from onnxprune.plugins import Plugins

_Properties = dict[str, Any]
_PLUGINS = Plugins("onnxprune.operators")
_TABLE: dict[str, Operator] = {}
_FOUND: dict[tuple[str, str], Operator] = {}  # by domain and type of a node: nodes are asked thousands of times
_MICROSOFT = "com.microsoft"


def register(operator: Operator) -> Operator:
    """Enter an operator, in the place of an entry of the same name."""
    _TABLE[operator.name] = operator
    _FOUND.clear()
    return operator


def key(domain: str, op_type: str) -> str:
    """Return the name under which an operator stands in every registry: "Conv", "com.microsoft::FusedConv"."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def operator_named(name: str) -> Operator:
    """Return what is known of an operator, by its key."""
    _PLUGINS.load()
    return _TABLE.get(name) or Operator(name)


def operator_of(node: ir.Node) -> Operator:
    """Return what is known of a node's operator."""
    name = node.domain, node.op_type
    found = _FOUND.get(name)
    if found is None:
        found = _FOUND[name] = operator_named(key(*name))
    return found


def operators() -> dict[str, Operator]:
    """Return the whole table, by key."""
    _PLUGINS.load()
    return dict(sorted(_TABLE.items()))


def _enter(names: str, *, domain: str = "", **properties: Any) -> None:
    """Enter several operators that share their properties, by names with spaces between; most multiply no matrices."""
    for name in names.split():
        register(Operator(key(domain, name), **{"multiply_adds": no_products, **properties}))


def _enter_contrib(names: str, **properties: Any) -> None:
    _enter(names, domain=_MICROSOFT, **properties)


# -- what only moves numbers ----------------------------------------------------------------------------------------

_MOVES: _Properties = {"within_range": True, "passes_units": True, "passes_integers": True}
_VIEWS: _Properties = {**_MOVES, "homogeneous": True, "keeps_mean": True}

_enter("Identity", movement="same", pointwise="unary", free=True, joins_convolution=True, **_VIEWS)
_enter("Cast CastLike", movement="cast", pointwise="unary", **_MOVES)
_enter("Reshape", movement="reshape", free=True, factor_rank=1, **_VIEWS)
_enter("Flatten Squeeze Unsqueeze", movement="reshape", free=True, **_VIEWS)
_enter("Transpose", movement="permute", **_VIEWS)
_enter("DepthToSpace SpaceToDepth", movement="rearrange", **_MOVES)
_enter("Slice Split", movement="pick", **_MOVES)
_enter("Gather", movement="pick", kind="embedding", tables=(0,), indices={1: (0, None)}, **_MOVES)
_enter("Expand Tile", movement="repeat", sized_by_values=True, **_MOVES)
_enter("Concat", movement="join", data=None, factor_rank=3, **_MOVES)
_enter("Pad", movement="pad", settings=(2,), **_MOVES)
_enter("GatherElements", indices={1: (0, None)}, passes_units=True)
_enter("ScatterElements Scatter", indices={1: (0, None)}, passes_units=True)
_enter("GatherND", movement="pick", passes_units=True)
_enter("CenterCropPad Compress CumProd CumSum ReverseSequence ScatterND TensorScatter TopK Trilu",
       passes_units=True)  # fmt: skip
_enter("Resize", settings=(1, 2), passes_units=True)
_enter("Upsample", settings=(1,), passes_units=True)

# -- elementwise ----------------------------------------------------------------------------------------------------

_UNARY: _Properties = {"pointwise": "unary", "passes_units": True}
_BROADCAST: _Properties = {"pointwise": "broadcast", "data": None, "passes_units": True}

_enter("Relu", homogeneous=True, cuts_off=True, joins_convolution=True, **_UNARY)
_enter("LeakyRelu", homogeneous=True, joins_convolution=True, **_UNARY)
_enter("Neg", homogeneous=True, **_UNARY)
_enter("Abs", homogeneous=True, passes_integers=True, **_UNARY)
_enter("Dropout", homogeneous=True, keeps_mean=True, free=True, random=True, settings=(1,), **_UNARY)
_enter("Sigmoid HardSigmoid Tanh", bounded=True, joins_convolution=True, **_UNARY)
_enter("Erf Softsign", bounded=True, **_UNARY)
_enter("Clip", settings=(1, 2), passes_integers=True, cuts_off=True, joins_convolution=True, **_UNARY)
_enter("HardSwish", joins_convolution=True, **_UNARY)
_enter("Log Reciprocal", never_zeroed=(0,), **_UNARY)
_enter("Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cosh Elu Exp Floor Gelu IsInf Mish Not Round "
       "Selu Shrink Sign Sinh Softplus Sqrt Swish Tan ThresholdedRelu", **_UNARY)  # fmt: skip
_enter("Cos Sin", of_angles=True, **_UNARY)
_enter("IsNaN", takes_nan=True, **_UNARY)
_enter("Add Sum", adds=True, **_BROADCAST)
_enter("Mul", joins_convolution=True, **_BROADCAST)
_enter("Div", never_zeroed=(1,), factor_rank=2, **_BROADCAST)
_enter("Mod", never_zeroed=(1,), factor_rank=4, **_BROADCAST)
_enter("Pow", never_zeroed=(0, 1), **_BROADCAST)  # 0 to the power of 0 is 1
_enter("Max", passes_integers=True, **_BROADCAST)
_enter("And BitShift BitwiseAnd BitwiseOr BitwiseXor Equal Mean Min Or PRelu Sub Xor SwiGLU", **_BROADCAST)
_enter("Greater GreaterOrEqual Less LessOrEqual", compares=True, **_BROADCAST)
_enter("Where", pointwise="broadcast", data=(1, 2), within_range=True, passes_units=True, passes_integers=True)
_enter("BitCast")
_enter_contrib("BiasAdd BiasGelu FastGelu", biases=(1,), passes_units=True)
_enter_contrib("Gelu QuickGelu", **_UNARY)

# -- pools and reductions -------------------------------------------------------------------------------------------

_POOLS: _Properties = {"shrinks": "pool", "passes_units": True}
_REDUCTIONS: _Properties = {"shrinks": "reduce", "passes_units": True}

_enter("MaxPool GlobalMaxPool", within_range=True, homogeneous=True, selects=True, **_POOLS)
_enter("AveragePool GlobalAveragePool", within_range=True, homogeneous=True, keeps_mean=True, **_POOLS)
_enter("LpPool GlobalLpPool", homogeneous=True, **_POOLS)
_enter("MaxRoiPool RoiAlign GridSample", passes_units=True)
_enter("ReduceMean", within_range=True, homogeneous=True, keeps_mean=True, **_REDUCTIONS)
_enter("ReduceMax ReduceMin", within_range=True, homogeneous=True, **_REDUCTIONS)
_enter("ReduceSum ReduceL1 ReduceL2", homogeneous=True, **_REDUCTIONS)
_enter("ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare ArgMin", **_REDUCTIONS)
_enter("ArgMax", classifies=True, **_REDUCTIONS)

# -- normalisation --------------------------------------------------------------------------------------------------

_enter("Softmax", bounded=True, head="softmax", classifies=True)
_enter("LogSoftmax", head="log-softmax", classifies=True)
_enter("BatchNormalization", kind="norm", roles={1: "scale", 3: "mean", 4: "variance"}, biases=(2,), passes_units=True,
       joins_convolution=True)  # fmt: skip
_enter("InstanceNormalization", kind="norm", roles={1: "scale"}, biases=(2,), passes_units=True)
_enter("LayerNormalization GroupNormalization", kind="norm", roles={1: "scale"}, biases=(2,))
_enter("RMSNormalization SimplifiedLayerNormalization", kind="norm", roles={1: "scale"})
_enter("Hardmax LRN LpNormalization MeanVarianceNormalization")
_enter_contrib("GroupNorm SkipGroupNorm", kind="norm", roles={1: "scale"}, biases=(2,))
_enter_contrib("SimplifiedLayerNormalization", kind="norm", roles={1: "scale"})
_enter_contrib("SkipLayerNormalization", kind="norm", roles={2: "scale"}, biases=(3, 4), plain="LayerNormalization",
               sum_output=3)  # fmt: skip
_enter_contrib("SkipSimplifiedLayerNormalization", kind="norm", roles={2: "scale"}, biases=(3,),
               plain="SimplifiedLayerNormalization", sum_output=3)  # fmt: skip
_enter_contrib("EmbedLayerNormalization", kind="norm", tables=(2, 3, 4), roles={5: "scale"}, biases=(6,),
               indices={0: (2, 0), 1: (4, 0)})  # fmt: skip

# -- contractions ---------------------------------------------------------------------------------------------------

_CONV = Slot(1, output=0, reduction=1, data=0, data_axis=1)
_TRANSPOSED_CONV = Slot(1, output=1, reduction=0, data=0, data_axis=1)
_MATMUL = (Slot(1, output=-1, reduction=-2, data=0, data_axis=-1, swap="transB", data_swap="transA"),
           Slot(0, output=-2, reduction=-1, data=1, data_axis=-2, swap="transA", data_swap="transB"))  # fmt: skip
_CONVS: _Properties = {"kind": "conv", "grouped": "group", "weights": (_CONV,), "multiply_adds": counts.convolution}
_GEMMS: _Properties = {"kind": "fc", "weights": _MATMUL, "multiply_adds": counts.gemm}
_MATMULS: _Properties = {"kind": "fc", "weights": _MATMUL, "multiply_adds": counts.matmul}
_CELLS: _Properties = {
    "kind": "rnn", "biases": (3,), "lengths": (4,), "multiply_adds": counts.recurrent,
    "weights": (Slot(1, output=1, reduction=2, data=0, data_axis=2),
                Slot(2, output=1, reduction=2, data=2, data_axis=2)),
}  # fmt: skip

_enter("Conv", biases=(2,), sees_windows=True, divisible=True, **_CONVS)
_enter_contrib("FusedConv", biases=(2,), sees_windows=True, plain="Conv", **_CONVS)
_enter_contrib("NhwcConv NhwcFusedConv", biases=(2,), **{**_CONVS, "weights": (replace(_CONV, data_axis=-1),)})
_enter("DeformConv", biases=(3,), **_CONVS)
_enter("ConvTranspose", biases=(2,), **{**_CONVS, "weights": (_TRANSPOSED_CONV,),
       "multiply_adds": counts.transposed_convolution})  # fmt: skip
for _domain in ("", _MICROSOFT):
    _enter("CausalConvWithState", domain=_domain, biases=(2,), states=(3,), **{**_CONVS, "grouped": "each channel"})
_enter("Gemm", biases=(2,), divisible=True, **_GEMMS)
_enter_contrib("FusedGemm", biases=(2,), plain="Gemm", **_GEMMS)
_enter_contrib("GemmFloat8 GemmFastGelu", biases=(2,), **{**_GEMMS, "kind": "other"})
_enter("MatMul", divisible=True, **_MATMULS)
_enter_contrib("FusedMatMul TransposeMatMul", **_MATMULS)
_enter_contrib("FusedMatMulActivation", **{**_MATMULS, "kind": "other"})
_enter_contrib("MatMulNBits", kind="fc", biases=(5,), quantised={1: (2, 3)}, multiply_adds=counts.matmul,
               weights=(Slot(1, output=0, reduction=1, data=0, data_axis=-1, packed=True),))  # fmt: skip
_enter_contrib("MatMulBnb4 MatMulFpQ4", kind="fc", multiply_adds=counts.matmul)
_enter_contrib("GatherBlockQuantized", kind="embedding", packed_table=0, quantised={0: (2, 3)})
_enter_contrib("MoE", biases=(3, 5, 7), multiply_adds=counts.experts,
               weights=tuple(Slot(i, output=1, reduction=2, data=i, data_axis=2) for i in (2, 4, 6)))  # fmt: skip
_enter_contrib(
    "QMoE",
    biases=(4, 7, 10),
    multiply_adds=counts.experts,
    quantised={2: (3, 11), 5: (6, 12), 8: (9, 13)},
    weights=tuple(Slot(i, output=1, reduction=2, data=i, data_axis=2, packed=True) for i in (2, 5, 8)),
)
_enter("Einsum", kind="fc", equation=True, multiply_adds=counts.einsum)
_enter("LSTM", roles={7: "weight"}, states=(5, 6), **_CELLS)
_enter("GRU RNN", states=(5,), **_CELLS)
_enter("Attention", heads="q_num_heads", multiply_adds=counts.attention)
for _domain in ("", _MICROSOFT):
    _enter("LinearAttention", domain=_domain, multiply_adds=counts.linear_attention)
_enter_contrib("Attention", heads="num_heads", weights=_MATMUL[:1], biases=(2,), multiply_adds=counts.fused_attention)
_enter_contrib("MultiHeadAttention", heads="num_heads", biases=(3,), multiply_adds=counts.multi_head_attention)
_enter_contrib("GroupQueryAttention", heads="num_heads", one_prompt=True, causal=True,
               multiply_adds=counts.group_query_attention)  # fmt: skip
_enter("RotaryEmbedding", of_angles=True)
_enter_contrib("RotaryEmbedding", of_angles=True)

# -- quantised ------------------------------------------------------------------------------------------------------

_ONE: _Properties = {"quantised": {0: (1, 2)}, "result_quantised": (3, 4)}
_TWO: _Properties = {"quantised": {0: (1, 2), 3: (4, 5)}, "result_quantised": (6, 7)}

_QCONVS: _Properties = {**_CONVS, "weights": (Slot(3, output=0, reduction=1, data=0, data_axis=1),), "biases": (8,),
           "quantised": {0: (1, 2), 3: (4, 5), 8: (None, None)}, "result_quantised": (6, 7)}  # fmt: skip


def _slots(left: int, right: int) -> tuple[Slot, ...]:
    """The slots of a matrix product whose operands are these inputs."""
    b, a = _MATMUL
    return replace(b, input=right, data=left), replace(a, input=left, data=right)


for _domain in ("", _MICROSOFT):
    _enter("QuantizeLinear", domain=_domain, result_quantised=(1, 2))
    _enter("DequantizeLinear", domain=_domain, pointwise="unary", quantised={0: (1, 2)})
    _enter("QLinearConv", domain=_domain, **{**_QCONVS, "multiply_adds": counts.qlinear_convolution})
_enter("DynamicQuantizeLinear", result_zero_point=2)
_enter("ConvInteger", quantised={0: (None, 2), 1: (None, 3)}, **_CONVS)
_enter("QLinearMatMul", **{**_MATMULS, "weights": _slots(0, 3)}, **_TWO)
_enter_contrib("QGemm", biases=(6,), **{**_GEMMS, "weights": _slots(0, 3)}, result_quantised=(7, 8),
               quantised={0: (1, 2), 3: (4, 5), 6: (None, None)})  # fmt: skip
_enter("MatMulInteger", quantised={0: (None, 2), 1: (None, 3)}, **_MATMULS)
_enter_contrib("MatMulInteger16", quantised={0: (None, None), 1: (None, None)}, **_MATMULS)
_enter_contrib("MatMulIntegerToFloat", biases=(6,), quantised={0: (2, 4), 1: (3, 5)}, **_MATMULS)
_enter_contrib("DynamicQuantizeMatMul", biases=(4,), quantised={1: (2, 3)}, **_MATMULS)
_enter_contrib("DynamicQuantizeLSTM", quantised={1: (8, 9), 2: (10, 11)}, **_CELLS)
_enter_contrib("QAttention", weights=_MATMUL[:1], biases=(2,), quantised={0: (3, 6), 1: (4, 7)},
               multiply_adds=counts.fused_attention)  # fmt: skip
_enter_contrib("QLinearAdd QLinearMul", **_TWO)
_enter_contrib("QLinearSigmoid QLinearLeakyRelu QLinearSoftmax QLinearAveragePool QLinearGlobalAveragePool "
               "QLinearReduceMean", **_ONE)  # fmt: skip
_enter_contrib("QLinearWhere", quantised={1: (2, 3), 4: (5, 6)}, result_quantised=(7, 8))
_enter_contrib("QLinearConcat", data=None, quantised={i: (i + 1, i + 2) for i in range(2, 392, 3)},
               result_quantised=(0, 1))  # fmt: skip
_enter_contrib("MulInteger ReduceSumInteger QEmbedLayerNormalization QuantizeBFP DequantizeBFP QuantizeWithOrder "
               "DequantizeWithOrder QOrderedGelu QOrderedLayerNormalization")  # fmt: skip

# -- what makes numbers, and bodies ---------------------------------------------------------------------------------

_enter("Constant", free=True, data=(), passes_units=True)
_enter("ConstantOfShape", free=True, generates=True, sized_by_values=True, data=(), passes_units=True)
_enter("Range", settings=(0, 1, 2), sized_by_values=True, data=(), passes_units=True)
_enter("EyeLike", generates=True, data=(), passes_units=True)
_enter("BlackmanWindow HammingWindow HannWindow", generates=True, data=())
_enter("Shape", shape_only=True, free=True, data=(), passes_units=True)
_enter("Size", shape_only=True, data=(), passes_units=True)
_enter("OneHot", settings=(2,), data=(), passes_units=True)
_enter("NonZero", passes_units=True)
_enter("RandomNormal RandomNormalLike RandomUniform RandomUniformLike", random=True, data=(), passes_units=True)
_enter("Bernoulli Multinomial", random=True, data=())
_enter("If Loop Scan", has_body=True, passes_units=True)
_enter("SequenceMap", has_body=True)

# -- no products of matrices, and nothing else that others ask for --------------------------------------------------

_enter("AffineGrid Affine Col2Im ConcatFromSequence Crop Det DynamicSlice GivenTensorFill ImageDecoder ImageScaler "
       "MaxUnpool MelWeightMatrix NegativeLogLikelihoodLoss NonMaxSuppression Optional OptionalGetElement "
       "OptionalHasElement ParametricSoftplus RegexFullMatch Scale ScaledTanh SequenceAt SequenceConstruct "
       "SequenceEmpty SequenceErase SequenceInsert SequenceLength SoftmaxCrossEntropyLoss SplitToSequence "
       "StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique MemcpyFromHost MemcpyToHost "
       "EfficientNMS_TRT MultilevelCropAndResize_TRT PyramidROIAlign_TRT")  # fmt: skip
_enter_contrib("BiasDropout BiasSoftmax BiasSplitGelu BifurcationDetector BitmaskBiasDropout BitmaskDropout "
               "BranchwiseRMSNorm ComplexMul ComplexMulConj CropAndResize DynamicTimeWarping ExpandDims GatedAdd "
               "GatedRMSNorm GatherND GatherPacked GemmaRotaryEmbedding GridSample IsAllFinite "
               "MRotaryEmbedding MaxpoolWithMask MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcMaxPool Pad "
               "RMSNormRotary Range RelativePositionBias RemovePadding RestorePadding ScaledSiLU SwiGLU "
               "Tokenizer TorchEmbedding Trilu UnfoldTensor Unique VarlenNGramHashMapping "
               "WordConvEmbedding")  # fmt: skip
_enter("Binarizer ArrayFeatureExtractor CastMap CategoryMapper DictVectorizer FeatureVectorizer LabelEncoder "
       "Normalizer OneHotEncoder Scaler ZipMap",
       domain="ai.onnx.ml")  # fmt: skip
_enter("Imputer TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor", domain="ai.onnx.ml", takes_nan=True)
_enter_contrib("ConvTransposeWithDynamicPads", kind="conv", multiply_adds=counts.transposed_convolution)
for _domain in ("com.ms.internal.nhwc", "com.microsoft.nchwc"):
    _enter("AveragePool BatchNormalization DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample "
           "InstanceNormalization LRN LpPool MaxPool MaxUnpool QLinearAveragePool ReorderInput ReorderOutput Resize "
           "SpaceToDepth Upsample", domain=_domain)  # fmt: skip
    _enter("Conv", domain=_domain, kind="conv", multiply_adds=counts.convolution)
    _enter("QLinearConv", domain=_domain, kind="conv", multiply_adds=counts.qlinear_convolution)
    _enter("ConvTranspose", domain=_domain, kind="conv", multiply_adds=counts.transposed_convolution)
    _enter("QLinearConvTranspose", domain=_domain, kind="conv", multiply_adds=counts.qlinear_transposed_convolution)
