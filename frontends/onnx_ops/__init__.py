"""The ONNX operators, grouped by topic; importing this package fills their table."""

from importlib import import_module

for _topic in (
    "activation",
    "attention",
    "cast",
    "contrib",
    "contrib_attention",
    "contrib_grouped",
    "contrib_blocks",
    "contrib_experts",
    "contrib_gates",
    "contrib_older",
    "contrib_packed",
    "contrib_quantize",
    "control",
    "quantize",
    "loss",
    "index",
    "layout",
    "linear",
    "ml",
    "recurrent",
    "sampling",
    "signal",
    "math",
    "norm",
    "pad",
    "reduction",
    "resize",
    "shape",
    "window",
):
    import_module(f"{__name__}.{_topic}")
