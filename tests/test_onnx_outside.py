"""Arrays that do not fit each other: MLX would read outside of them, or end the process, so they are refused before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fuser.errors import InvalidModelError
from tests.onnx_build import run_node

F, MS = np.float32, "com.microsoft"


def zeros(*shape: int, dtype: Any = F) -> Any:
    return np.zeros(shape, dtype)


TOKENS, LOGITS = zeros(3, 8), zeros(3, 4)
FIRST, SECOND = zeros(4, 6, 8), zeros(4, 8, 6)
IMAGE, BATCH = zeros(1, 1, 4, 4), zeros(2, dtype=np.int64)
BYTES = zeros(4, 16, 4, dtype=np.uint8)
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "values of one-hot": ("OneHot", [zeros(3, dtype=np.int64), np.array(4), zeros(1)], {"constants": (1,)}),
    "directions": ("LSTM", [zeros(2, 1, 3), zeros(2, 8, 3), zeros(1, 8, 2)], {"direction": "bidirectional"}),
    "directions of a state": ("GRU", [zeros(2, 1, 3), zeros(1, 6, 3), zeros(1, 6, 2), None, None, zeros(2, 1, 2)], {}),
    "q, k and v in one": ("MultiHeadAttention", [zeros(1, 4, 2, 2, 8)], {"domain": MS, "num_heads": 2}),
    "keys and values in one": (
        "MultiHeadAttention",
        [zeros(1, 4, 16), zeros(1, 4, 2, 1, 8)],
        {"domain": MS, "num_heads": 2},
    ),
    "a past of keys alone": (
        "Attention",
        [zeros(1, 2, 4), zeros(4, 12), zeros(12), None, zeros(1, 1, 2, 3, 2)],
        {"domain": MS, "num_heads": 2},
    ),
    "fewer experts": ("MoE", [TOKENS, LOGITS, FIRST[:3], None, SECOND], {"domain": MS}),
    "fewer biases": ("MoE", [TOKENS, LOGITS, FIRST, zeros(3, 6), SECOND], {"domain": MS}),
    "fewer tokens": ("MoE", [TOKENS, LOGITS[:2], FIRST, None, SECOND], {"domain": MS}),
    "fewer scales": (
        "GatherBlockQuantized",
        [BYTES[0], zeros(2, dtype=np.int64), zeros(3, 1)],
        {"domain": MS, "bits": 8, "block_size": 16, "quantize_axis": 1},
    ),
    "caches of positions": (
        "MRotaryEmbedding",
        [zeros(1, 2, 3, 8), zeros(3, 1, 3, dtype=np.int64), zeros(9, 4), zeros(5, 4)],
        {"domain": MS, "mrope_section": [2, 1, 1]},
    ),
    "no channels": ("Conv", [zeros(1, 3, 4, 4), zeros(0, 3, 1, 1)], {}),
    "no channels back": ("ConvTranspose", [zeros(1, 3, 4, 4), zeros(3, 0, 1, 1)], {}),
    "corners of regions": (
        "RoiAlign",
        [zeros(1, 1, 4, 4), zeros(2, 2), zeros(2, dtype=np.int64)],
        {"sampling_ratio": 1},
    ),
    "many samples": ("RoiAlign", [IMAGE, zeros(2, 4), BATCH], {"sampling_ratio": 1 << 20}),
    "parts of numbers": ("STFT", [zeros(1, 8, 0), np.array(2), zeros(4)], {"constants": (1,)}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(case: str) -> None:
    kind, inputs, options = CASES[case]
    with pytest.raises(InvalidModelError):
        run_node(kind, inputs, **options)


def test_no_rows_times_a_matrix_of_few_bits() -> None:
    packed, scales = zeros(8, 2, 16, dtype=np.uint8), zeros(16)
    options: dict[str, Any] = {"domain": MS, "K": 64, "N": 8, "bits": 4, "block_size": 32}
    (y,) = run_node("MatMulNBits", [zeros(0, 64), packed, scales], **options)
    assert y.shape == (0, 8)
