"""Standard operators that are refused, and why."""

from __future__ import annotations

_STRINGS = "MLX has no strings"
_RANDOM = "it draws random numbers, so no two runs agree"
_TRAINING = "it trains a model, and fuser runs models"
_TREES = "MLX is no engine for classical machine learning models"

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
    **{("ai.onnx.preview.training", name): _TRAINING for name in ("Adagrad", "Adam", "Gradient", "Momentum")},
}


def reason(domain: str, name: str) -> str | None:
    """Why an operator is refused, where that is decided for good."""
    if domain == "ai.onnx.ml":
        return REASONS.get((domain, name), _TREES)
    return REASONS.get((domain, name))
