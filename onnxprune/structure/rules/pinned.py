"""Operators that are pinned on purpose, with the reason that users see.

Every operator of ONNX, and every operator of ONNX Runtime that runs on CPUs, has a rule or stands here.
"""

from __future__ import annotations

import onnx

from onnxprune.structure.registry import pinned

# -- ai.onnx --------------------------------------------------------------------------------------------------------

pinned(
    "it handles sequences or optional values, whose elements have no axes in common",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
)  # fmt: skip
pinned("it handles text", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer")
pinned("it decodes a file", "ImageDecoder")
pinned("it draws a random number for every element", "Bernoulli", "Multinomial")
pinned(
    "it makes a table in which every position has a meaning",
    "AffineGrid", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix",
)  # fmt: skip
pinned("it transforms a signal: every result depends on every sample", "DFT", "STFT")
pinned("it lays blocks of an image over one another by position", "Col2Im")
pinned("it takes a determinant, to which every element counts", "Det")
pinned("its indices count elements of the whole unpooled tensor", "MaxUnpool")
pinned(
    "it is compiled for one device",
    "DisentangledAttention_TRT", "EfficientNMS_TRT", "MemcpyFromHost", "MemcpyToHost", "MultilevelCropAndResize_TRT",
    "PyramidROIAlign_TRT",
)  # fmt: skip
pinned("it is a training loss over classes", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
pinned("it ranks boxes and returns their positions", "NonMaxSuppression")
pinned("what it returns depends on equal elements, known only while the model runs", "Unique")

# Names that only old or experimental operator sets have.
pinned(
    "it is an experimental operator that ONNX has dropped",
    "Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler",
    "ParametricSoftplus", "Scale", "ScaledTanh",
)  # fmt: skip

# -- other domains of ONNX ------------------------------------------------------------------------------------------

_DOMAINS = {
    "ai.onnx.ml": "it is a classical machine-learning model or a feature table, without weights that couple",
    "ai.onnx.preview.training": "it is a training step",
    "ai.onnx.preview": "its score and probability modifiers are graphs that may use any position",
    "ai.onnx.training": "it is a training step",
}
for _schema in onnx.defs.get_all_schemas_with_history():
    if _schema.domain in _DOMAINS:
        pinned(_DOMAINS[_schema.domain], f"{_schema.domain}::{_schema.name}")

# -- ONNX Runtime ---------------------------------------------------------------------------------------------------


def _microsoft(reason: str, *operators: str) -> None:
    pinned(reason, *(f"com.microsoft::{name}" for name in operators))


_microsoft(
    "its weights are packed in blocks of bits",
    "MatMulBnb4", "MatMulFpQ4", "MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight", "MatMulNBitsMlp",
    "MatMulNBitsQLoRA", "MatMulNBitsQkv", "MatMulPacked", "MoEPacked", "GatherPacked",
    "DequantizeBFP", "QuantizeBFP", "DequantizeWithOrder", "QuantizeWithOrder", "QOrderedAttention", "QOrderedGelu",
    "QOrderedLayerNormalization", "QOrderedLongformerAttention", "QOrderedMatMul",
)  # fmt: skip
_microsoft(
    "its quantised weights are laid out for one kernel",
    "QAttention", "DynamicQuantizeLSTM", "QEmbedLayerNormalization", "QLinearReduceMean", "MulInteger",
    "ReduceSumInteger",
)  # fmt: skip
_microsoft(
    "its cache and positions are laid out for generating text token by token",
    "DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "PagedAttention",
    "PackedAttention", "PackedMultiHeadAttention", "SparseAttention", "SparsePagedAttention", "DynamicSparseAttention",
    "SparseAttentionIndexer", "PackedSparseAttentionIndexer", "PackedSparseAttentionIndexerMerge",
    "LongformerAttention", "GatedDeltaNet", "GatedDeltaNetStateReplay", "ConvStateReplay", "Mamba2Verify",
    "VarlenCausalConvWithState", "VarlenNGramHashMapping", "SpeculativePrefixCommit", "GemmaRotaryEmbedding",
    "MRotaryEmbedding", "RMSNormRotary", "LinearAttentionGate", "BranchwiseRMSNorm", "GatedRMSNorm", "EngramGate",
    "HyperConnectionLowRankMix", "HyperConnectionPostMix", "HyperConnectionPreMix", "RelativePositionBias",
    "GatedRelativePositionBias", "RemovePadding", "RestorePadding",
)  # fmt: skip
_microsoft(
    "it generates whole sequences with graphs of its own",
    "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "BifurcationDetector", "NGramRepeatBlock",
    "NGramHashMapping",
)  # fmt: skip
_microsoft(
    "its experts are routed by kernels that fix their layout",
    "MoEGroupRouter", "RouterGateUpProj",
)  # fmt: skip
_microsoft(
    "its channels are the last axis, in a layout that ONNX Runtime makes for one machine",
    "NhwcConv", "NhwcFusedConv", "NhwcMaxPool",
)  # fmt: skip
_microsoft(
    "ONNX Runtime makes it when it optimises a model for GPUs",
    "BiasDropout", "BiasSoftmax", "BiasSplitGelu", "BitmaskBiasDropout", "BitmaskDropout", "FusedMatMulActivation",
    "GatedAdd", "GemmFastGelu", "ScaledSiLU", "SkipGroupNorm", "SwiGLU",
)  # fmt: skip
_microsoft(
    "it transforms a signal: every result depends on every sample",
    "Rfft", "Irfft", "ComplexMul", "ComplexMulConj", "DynamicTimeWarping", "CDist",
)  # fmt: skip
_microsoft("its padding is known only while the model runs", "ConvTransposeWithDynamicPads", "MaxpoolWithMask", "Pad")
_microsoft("it inverts a matrix, to which every element counts", "Inverse")
_microsoft("it handles text", "Tokenizer", "WordConvEmbedding", "MurmurHash3", "TorchEmbedding")
_microsoft("it is a recurrent cell with an attention inside", "AttnLSTM")
_microsoft(
    "the operator of ai.onnx with this name is followed, this older copy is not",
    "CropAndResize", "ExpandDims", "GatherND", "GridSample", "Range", "Trilu", "UnfoldTensor", "Unique",
)  # fmt: skip
_microsoft("it is compiled for one device", "EPContext", "Snpe", "SampleOp", "IsAllFinite")
_microsoft("its operand is sparse", "SparseToDenseMatMul")
_LAYOUTS = {
    "com.microsoft.nchwc": (
        "its channels lie in blocks that ONNX Runtime makes for one machine",
        ("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput",
         "Upsample"),
    ),
    "com.ms.internal.nhwc": (
        "its channels are the last axis, in a layout that ONNX Runtime makes for one machine",
        ("AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
         "GlobalLpPool", "GlobalMaxPool", "GridSample", "InstanceNormalization", "LRN", "LpPool", "MaxPool",
         "MaxUnpool", "QLinearAveragePool", "QLinearConv", "QLinearConvTranspose", "Resize", "SpaceToDepth"),
    ),
}  # fmt: skip
for _domain, (_reason, _names) in _LAYOUTS.items():
    pinned(_reason, *(f"{_domain}::{_name}" for _name in _names))
