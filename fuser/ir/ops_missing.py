"""What the table of primitives leaves out, and why."""

from __future__ import annotations

# Primitives that a trace may hold and no public call gives.
NOT_REBUILT: dict[str, str] = {
    "CustomKernel": "a trace leaves out the value that the kernel's outputs start from (init_value)",
}

# Primitives that MLX refuses to export, so that no trace holds them, by the names that its errors give them:
# the public calls they come from. (An error about AllReduce does not name it: MLX takes it for a Reduce.)
NOT_EXPORTED: dict[str, str] = {
    "AllGather": "mx.distributed.all_gather",
    "AllReduce": "mx.distributed.all_sum, all_max, all_min",
    "BitwiseInvert": "mx.bitwise_invert, ~",
    "Compiled": "mx.compile",
    "Contiguous": "mx.contiguous",
    "CrossEntropy": "mx.fast.cross_entropy",
    "CrossEntropyVJP": "a gradient of mx.fast.cross_entropy",
    "CumLogAddExp": "mx.logcumsumexp",
    "CustomTransforms": "mx.custom_function, mx.checkpoint",
    "FromFP8": "mx.from_fp8, mx.dequantize in the modes mxfp8 and nvfp4",
    "GatedDeltaUpdate": "mx.fast.gated_delta_update",
    "GatedDeltaUpdateVJP": "a gradient of mx.fast.gated_delta_update",
    "GatherQQMM": "mx.gather_qqmm",
    "LUF": "mx.linalg.lu, lu_factor, solve, det, slogdet",
    "Load": "mx.load, before its arrays are evaluated",
    "QQMatmul": "mx.qqmm",
    "Recv": "mx.distributed.recv, recv_like",
    "ReduceScatter": "mx.distributed.sum_scatter",
    "ScaledDotProductAttentionVJP": "a gradient of mx.fast.scaled_dot_product_attention on CUDA",
    "SegmentedMM": "mx.segmented_mm, a gradient of mx.gather_mm with sorted_indices",
    "Send": "mx.distributed.send",
    "ToFP8": "mx.to_fp8, mx.quantize in the modes mxfp8 and nvfp4",
}
