"""Our attention kernel for half types on CUDA's tensor cores: what `flash_gpu` computes, in products of 16 x 8 x 16.

A block of warps owns as many times 16 rows of queries, which stay in registers. It goes over the keys a tile at a time,
with a running maximum and sum for each row: the tile's keys, then its values, are fetched into shared memory while the
other of the two is worked on. Weights are rounded to the half type for the product with the values; sums stay float32.

Source: the PTX manual for `ldmatrix` and `mma`.
"""

from __future__ import annotations

from fuser.kernels import flash_tiles

WARPS = 4
# blocks that keep a large GPU busy, and the tiles that one of them has at the least
FULL, LEAST = 264, 4

HEADER = (
    flash_tiles.HEADER
    + r"""
#ifndef SIMULATED
// c += a b, where a is 16 x 16 by rows and b 16 x 8 by columns
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
// four matrices of 8 x 8 from shared memory; lane l says where row l % 8 of matrix l / 8 is
#define FOUR(TURNED)                                                                                           \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" TURNED ".shared.b16 {%0,%1,%2,%3}, [%4];"                     \
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])                                              \
                 : "r"(unsigned(__cvta_generic_to_shared(row)))                                                \
                 : "memory")
__device__ inline void four(unsigned *b, const void *row) { FOUR(""); }
__device__ inline void four_turned(unsigned *b, const void *row) { FOUR(".trans"); }
#endif

// two neighbours of a row, zeros beyond its end; numbers are `step` apart
template <typename T, int SIZE>
__device__ inline unsigned pair(const T *row, LONGER step, int first, bool aligned) {
    if (SIZE % 2 == 0 && aligned)
        return first < SIZE ? *reinterpret_cast<const unsigned *>(row + first) : 0u;
    return packed<T>(first < SIZE ? row[first * step] : T(0.0f), first + 1 < SIZE ? row[(first + 1) * step] : T(0.0f));
}
"""
)

BODY = r"""
    constexpr int STEPS = (D + 15) / 16, PARTS = (DV + 15) / 16, COLUMNS = 2 * PARTS;
    // a row's last eight numbers in shared memory are unused, so that eight rows lie in different banks
    constexpr int K_STRIDE = STEPS * 16 + 8, V_STRIDE = PARTS * 16 + 8, THREADS = 32 * WARPS;
    __shared__ Sixteen room[TILE * (K_STRIDE + V_STRIDE) / 8];
    T *const near_k = reinterpret_cast<T *>(room);
    T *const near_v = near_k + TILE * K_STRIDE;
    PLACES
    const bool even = in_q_strides[3] == 1 && in_q_strides[2] % 2 == 0 && in_q_strides[1] % 2 == 0
        && reinterpret_cast<size_t>(q) % 4 == 0;
    auto stage_keys = [&](int tile) {
        stage<T, D, STEPS * 16, TILE, THREADS, true>([&](int row, int at) { return near_k + row * K_STRIDE + at; },
            [&](int row) { return k + (tile + row) * k_line; }, keys - tile, k_step, k_aligned);
    };
    if (start < stop)
        stage_keys(start);
    ROWS
    unsigned query[STEPS][4];
    UNROLL
    for (int e = 0; e < 4; e++) {
        const T *const line = q + head[e % 2] * in_q_strides[1] + safe[e % 2] % queries * in_q_strides[2];
        UNROLL
        for (int step = 0; step < STEPS; step++)
            query[step][e] = pair<T, D>(line, in_q_strides[3], step * 16 + column + e / 2 * 8, even);
    }
    float sum[COLUMNS][4];
    cleared<COLUMNS>(sum);
    // where this lane's row of four matrices is, of keys and of values
    const T *const key_row = near_k + (lane / 16 * 8 + lane % 8) * K_STRIDE + lane / 8 % 2 * 8;
    const T *const value_row = near_v + (lane / 8 % 2 * 8 + lane % 8) * V_STRIDE + lane / 16 * 8;

    for (int tile = start; tile < stop; tile += TILE) {
        // the keys are there, and nobody needs the values of the tile before
        FETCHED;
        __syncthreads();
        stage<T, DV, PARTS * 16, TILE, THREADS, true>([&](int row, int at) { return near_v + row * V_STRIDE + at; },
            [&](int row) { return v + (tile + row) * v_line; }, keys - tile, v_step, v_aligned);
        float score[TILE / 8][4];
        cleared<TILE / 8>(score);
        UNROLL
        for (int step = 0; step < STEPS; step++)
            UNROLL
            for (int n = 0; n < TILE / 16; n++) {
                unsigned b[4];
                four(b, key_row + n * 16 * K_STRIDE + step * 16);
                multiply<BRAIN>(score[2 * n], query[step], b);
                multiply<BRAIN>(score[2 * n + 1], query[step], b + 2);
            }
        // the values are there, and nobody needs these keys
        FETCHED;
        __syncthreads();
        if (tile + TILE < stop)
            stage_keys(tile + TILE);
        SOFTEN
        UNROLL
        for (int n = 0; n < COLUMNS; n++)
            UNROLL
            for (int e = 0; e < 4; e++)
                sum[n][e] *= fade[e / 2];
        UNROLL
        for (int some = 0; some < TILE / 16; some++) {
            unsigned a[4];
            weighed<T, BRAIN>(a, score + 2 * some);
            UNROLL
            for (int n = 0; n < PARTS; n++) {
                unsigned b[4];
                four_turned(b, value_row + some * 16 * V_STRIDE + n * 16);
                multiply<BRAIN>(sum[2 * n], a, b);
                multiply<BRAIN>(sum[2 * n + 1], a, b + 2);
            }
        }
    }
    END
"""


def tile(depth: int, width: int) -> int:
    """How many keys are worked on at once: what shared memory and registers have room for."""
    return 64 if max(depth, width) <= 128 else 32


def splits(blocks: int, keys: int, size: int) -> int:
    """Over how many blocks the keys are shared out, where there are `blocks` without that and tiles of `size` keys."""
    return max(1, min(FULL // blocks, keys // (LEAST * size))) if blocks > 0 else 1
