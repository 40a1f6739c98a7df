"""Operators that are refused, and why."""

from __future__ import annotations

_STRINGS = "MLX has no strings"
_RANDOM = "it draws random numbers, so no two runs agree"
_TRAINING = "it trains a model, and fuser runs models"
_TREES = "MLX is no engine for classical machine learning models"

_BLOCKS = (
    "channels are in blocks of a size that only the machine knows on which the model was optimised: "
    "save it with ORT_ENABLE_EXTENDED"
)
_SEARCH = "it runs a whole generation, with models of its own: load those, and choose tokens outside"
_GPU = "ONNX Runtime has it on GPUs only, in formats of theirs"
_BEYOND = "it is no part of a transformer's inference that ONNX Runtime's tools or exporters write"

REASONS: dict[tuple[str, str], str] = {
    **{("", name): _STRINGS for name in ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit")},
    ("", "TfIdfVectorizer"): "it counts words of texts",
    ("", "MaxRoiPool"): "no exporter of today writes it: RoiAlign took its place",
    ("", "ImageDecoder"): "it decodes image files",
    ("", "Optional"): "MLX has no optional values",
    **{
        ("", name): _RANDOM
        for name in (
            "Bernoulli",
            "Multinomial",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
        )
    },
    **{
        ("com.microsoft", name): _SEARCH
        for name in ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "BifurcationDetector")
    },
    **{
        ("com.microsoft", name): _GPU
        for name in (
            "DecoderMaskedSelfAttention",
            "GemmFloat8",
            "LongformerAttention",
            "MatMulBlockQuantizedFp4Weight",
            "MatMulBlockQuantizedFp8Weight",
            "MatMulNBitsMlp",
            "MatMulNBitsQLoRA",
            "MatMulNBitsQkv",
            "MatMulPacked",
            "MoEPacked",
            "PagedAttention",
            "QOrderedAttention",
            "QOrderedGelu",
            "QOrderedLayerNormalization",
            "QOrderedLongformerAttention",
            "QOrderedMatMul",
            "QuantizeWithOrder",
            "DequantizeWithOrder",
            "RMSNormRotary",
            "SparsePagedAttention",
        )
    },
    (
        "com.microsoft",
        "DecoderAttention",
    ): "its caches depend on the values of inputs; MultiHeadAttention took its place",
    (
        "com.microsoft",
        "DynamicQuantizeLSTM",
    ): "every step is quantized by its own range: leave LSTMs as they are",
    ("com.microsoft", "MatMulFpQ4"): "MatMulNBits took its place",
    ("com.microsoft", "EPContext"): "it holds a program for another device",
    ("com.microsoft", "SparseToDenseMatMul"): "MLX has no sparse arrays",
    ("com.microsoft", "Tokenizer"): _STRINGS,
    **{
        ("com.microsoft", name): _BEYOND
        for name in (
            "AttnLSTM",
            "BitmaskBiasDropout",
            "BitmaskDropout",
            "ComplexMul",
            "ComplexMulConj",
            "CropAndResize",
            "DynamicTimeWarping",
            "IsAllFinite",
            "Irfft",
            "MaxpoolWithMask",
            "MurmurHash3",
            "Rfft",
            "WordConvEmbedding",
        )
    },
    **{("ai.onnx.preview.training", name): _TRAINING for name in ("Adagrad", "Adam", "Gradient", "Momentum")},
}


def reason(domain: str, name: str) -> str | None:
    """Why an operator is refused, where that is decided for good."""
    if domain == "com.microsoft.nchwc":
        return _BLOCKS
    if domain == "ai.onnx.ml":
        return REASONS.get((domain, name), _TREES)
    return REASONS.get((domain, name))
