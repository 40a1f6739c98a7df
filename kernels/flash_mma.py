"""Our attention kernel for half types on CUDA's tensor cores: what `flash_gpu` computes, in products of 16 x 8 x 16.

A warp owns 16 rows of queries and goes over the keys 16 at a time, with a running maximum and sum for each row. Its
lanes hold the products as `mma.sync` gives them: lane l has rows l / 4 and l / 4 + 8, and of each eight columns two,
from 2 (l % 4) on. Weights are rounded to the half type for the product with the values; sums stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

WARPS = 4

HEADER = r"""
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define LONG (long long)
#define UNROLL _Pragma("unroll")

template <typename T>
struct alignas(2 * sizeof(T)) Two {
    T at[2];
};

template <typename T>
__device__ inline unsigned packed(T first, T second) {
    Two<T> two;
    two.at[0] = first, two.at[1] = second;
    return *reinterpret_cast<const unsigned *>(&two);
}

// c += a b, where a is 16 x 16 by rows and b 16 x 8 by columns
#ifndef SIMULATED
#define MULTIPLY(TYPE)                                                                                         \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                       \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <bool BRAIN>
__device__ inline void multiply(float *c, const unsigned *a, const unsigned *b) {
    if (BRAIN)
        MULTIPLY("bf16");
    else
        MULTIPLY("f16");
}
#endif

// two neighbours of a row, zeros beyond its end
template <typename T, int SIZE>
__device__ inline unsigned pair(const T *row, int first, bool aligned) {
    if (SIZE % 2 == 0 && aligned)
        return first < SIZE ? *reinterpret_cast<const unsigned *>(row + first) : 0u;
    return packed<T>(first < SIZE ? row[first] : T(0.0f), first + 1 < SIZE ? row[first + 1] : T(0.0f));
}

// over the four lanes that share a row
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline float row_most(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
"""

BODY = r"""
    constexpr int STEPS = (D + 15) / 16, BLOCKS = (DV + 7) / 8;
    const int groups = sizes[0], queries = sizes[1], keys = sizes[2], shared_heads = sizes[3];
    const int ahead = sizes[9], behind = sizes[10];
    const float scale = numbers[0], cap = numbers[1];
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, group = int(blockIdx.y);
    const int rows = groups * queries, offset = keys - queries;
    const int first = (int(blockIdx.x) * WARPS + warp) * 16;
    if (first >= rows)
        return;
    const T *q = in_q + LONG(group) * groups * queries * D;
    const T *k = in_k + LONG(group) * keys * D;
    const T *v = in_v + LONG(group) * keys * DV;
    T *out = given + LONG(group) * groups * queries * DV;
    const int from = group % shared_heads * groups;
    const bool aligned = (reinterpret_cast<size_t>(q) | reinterpret_cast<size_t>(k)) % 4 == 0;
    (void)from, (void)cap;
    const int last = (first + 16 < rows ? first + 16 : rows) - 1;
    const bool one = first / queries == last / queries;
    int start = (one ? first % queries : 0) + offset - behind;
    start = start < 0 ? 0 : start - start % 16;
    int stop = (one ? last % queries : queries - 1) + offset + ahead + 1;
    stop = stop < keys ? stop : keys;

    int safe[2], reach[2], head[2], cell[2];
    float most[2], total[2] = {0.0f, 0.0f}, slope[2] = {0.0f, 0.0f};
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        safe[r] = row < rows ? row : rows - 1;
        head[r] = safe[r] / queries;
        reach[r] = safe[r] % queries + offset;
        cell[r] = head[r] * sizes[6] + safe[r] % queries * sizes[7];
        most[r] = -3.4028234663852886e38f;
        SINKS
        SLOPES
    }
    (void)cell;
    const int column = lane % 4 * 2;
    float sum[BLOCKS][4];
    UNROLL
    for (int n = 0; n < BLOCKS; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            sum[n][e] = 0.0f;

    for (int tile = start; tile < stop; tile += 16) {
        float score[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
        // not unrolled wholly: the queries of wide heads would be kept in registers that there are not
        _Pragma("unroll 4")
        for (int step = 0; step < STEPS; step++) {
            const int at = step * 16 + column;
            unsigned a[4], b[2];
            UNROLL
            for (int e = 0; e < 4; e++)
                a[e] = pair<T, D>(q + LONG(safe[e % 2]) * D, at + e / 2 * 8, aligned);
            UNROLL
            for (int half = 0; half < 2; half++) {
                const int key = tile + half * 8 + lane / 4;
                const T *line = k + LONG(key < keys ? key : keys - 1) * D;
                b[0] = pair<T, D>(line, at, aligned), b[1] = pair<T, D>(line, at + 8, aligned);
                multiply<BRAIN>(score[half], a, b);
            }
        }
        float top[2] = {most[0], most[1]}, fade[2], weights[2] = {0.0f, 0.0f};
        UNROLL
        for (int e = 0; e < 8; e++) {
            const int r = e / 2 % 2, key = tile + e / 4 * 8 + column + e % 2;
            float x = score[e / 4][e % 4] * scale;
            if (HAS_CAP)
                x = tanhf(x * (1.0f / cap)) * cap;
            const int away = key - reach[r];
            if (HAS_SLOPES)
                x += slope[r] * float(sizes[11] != 0 && away < 0 ? -away : away);
            MASKED
            const bool seen = away <= ahead && away >= -behind && key < keys;
            x = seen ? x : -INFINITY;
            score[e / 4][e % 4] = x;
            top[r] = x > top[r] ? x : top[r];
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            top[r] = row_most(top[r]);
            fade[r] = expf(most[r] - top[r]);
            most[r] = top[r];
        }
        UNROLL
        for (int e = 0; e < 8; e++) {
            const int r = e / 2 % 2;
            score[e / 4][e % 4] = expf(score[e / 4][e % 4] - top[r]);
            weights[r] += score[e / 4][e % 4];
        }
        UNROLL
        for (int r = 0; r < 2; r++)
            total[r] = total[r] * fade[r] + row_sum(weights[r]);
        unsigned a[4];
        UNROLL
        for (int e = 0; e < 4; e++)
            a[e] = packed<T>(T(score[e / 2][e % 2 * 2]), T(score[e / 2][e % 2 * 2 + 1]));
        const T *line[4];
        UNROLL
        for (int e = 0; e < 4; e++) {
            const int key = tile + column + e / 2 * 8 + e % 2;
            line[e] = v + LONG(key < keys ? key : keys - 1) * DV;
        }
        UNROLL
        for (int n = 0; n < BLOCKS; n++) {
            const int at = n * 8 + lane / 4;
            const bool there = DV % 8 == 0 || at < DV;
            unsigned b[2];
            b[0] = there ? packed<T>(line[0][at], line[1][at]) : 0u;
            b[1] = there ? packed<T>(line[2][at], line[3][at]) : 0u;
            UNROLL
            for (int e = 0; e < 4; e++)
                sum[n][e] *= fade[e / 2];
            multiply<BRAIN>(sum[n], a, b);
        }
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        const float share = total[r] > 0.0f ? 1.0f / total[r] : total[r] + numbers[3];
        if (first + lane / 4 + 8 * r < rows)
            UNROLL
            for (int n = 0; n < BLOCKS; n++)
                UNROLL
                for (int e = 0; e < 2; e++)
                    if (n * 8 + column + e < DV)
                        out[LONG(safe[r]) * DV + n * 8 + column + e] = T(sum[n][2 * r + e] * share);
    }
"""
KEEPS = "x = in_mask[corner + cell[r] + (key < keys ? key : keys - 1) * sizes[8]] ? x : numbers[2];"
ADDS = "x += float(in_mask[corner + cell[r] + (key < keys ? key : keys - 1) * sizes[8]]);"


def source(mask: int, sinks: bool, slopes: bool) -> str:
    """The text of the kernel's function; `mask` is 0 for none, 1 for a boolean one, 2 for an additive one."""
    corner = "const long long corner = LONG(group / shared_heads) * sizes[4] + LONG(group % shared_heads) * sizes[5];\n"
    text = BODY.replace("SINKS", "most[r] = float(in_sinks[from + head[r]]), total[r] = 1.0f;" if sinks else "", 1)
    text = text.replace("        SLOPES", "        slope[r] = float(in_slopes[from + head[r]]);" if slopes else "", 1)
    text = text.replace("MASKED", ("", KEEPS, ADDS)[mask], 1)
    return text.replace("    int safe[2]", f"    {corner if mask else ''}    int safe[2]", 1)


@functools.cache
def kernel(mask: int, sinks: bool, slopes: bool) -> Callable[..., Any]:
    """MLX's custom kernel for a choice of arrays."""
    names = ["in_q", "in_k", "in_v", "sizes", "numbers"]
    names += [name for name, there in (("in_mask", mask), ("in_sinks", sinks), ("in_slopes", slopes)) if there]
    make: Any = mx.fast.cuda_kernel
    made: Callable[..., Any] = make(
        name=f"fuser_attention_mma_{mask}{sinks:d}{slopes:d}",
        input_names=names,
        output_names=["given"],
        source=source(mask, sinks, slopes),
        header=HEADER,
    )
    return made
