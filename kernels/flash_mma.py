"""Our attention kernel for half types on CUDA's tensor cores: what `flash_gpu` computes, in products of 16 x 8 x 16.

A block of warps owns as many times 16 rows of queries, which stay in registers. It goes over the keys a tile at a time,
with a running maximum and sum for each row: the tile's keys, then its values, are fetched into shared memory while the
other of the two is worked on. The lanes hold the products as `mma.sync` gives them: lane l has rows l / 4 and
l / 4 + 8, and of each eight columns two, from 2 (l % 4) on. Weights are rounded to the half type for the product with
the values; sums stay float32.

A few queries over many keys do not fill a GPU: then the keys are shared out over `SPLITS` blocks (Flash-Decoding),
whose sums a second kernel adds up.

Source: Dao, FlashAttention-2 (arXiv:2307.08691), for the order of work; the PTX manual for `ldmatrix` and `mma`.
"""

from __future__ import annotations

import re

WARPS = 4
# blocks that keep a large GPU busy, and the tiles that one of them has at the least
FULL, LEAST = 264, 4

HEADER = r"""
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define LONG (long long)
#define LONGER long long
#define UNROLL _Pragma("unroll")
#define LOG2E 1.4426950408889634f

template <typename T>
struct alignas(2 * sizeof(T)) Two {
    T at[2];
};
struct alignas(16) Sixteen {
    unsigned at[4];
};

template <typename T>
__device__ inline unsigned packed(T first, T second) {
    Two<T> two;
    two.at[0] = first, two.at[1] = second;
    return *reinterpret_cast<const unsigned *>(&two);
}

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
// sixteen bytes into shared memory, zeros where there are none; it goes on while others work
__device__ inline void fetch(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
#define FETCHED asm volatile("cp.async.wait_all;" ::: "memory")
#define POWER_OF_2(x) exp2f(x)
#define DIVIDED(x, y) __fdividef(x, y)
#endif

// two neighbours of a row, zeros beyond its end; numbers are `step` apart
template <typename T, int SIZE>
__device__ inline unsigned pair(const T *row, LONGER step, int first, bool aligned) {
    if (SIZE % 2 == 0 && aligned)
        return first < SIZE ? *reinterpret_cast<const unsigned *>(row + first) : 0u;
    return packed<T>(first < SIZE ? row[first * step] : T(0.0f), first + 1 < SIZE ? row[(first + 1) * step] : T(0.0f));
}

// the rows of a tile into shared memory, where each takes STRIDE numbers, the last eight of them unused: so that eight
// rows lie in different banks
template <typename T, int SIZE, int STRIDE, int TILE, int THREADS>
__device__ inline void stage(T *room, const T *from, LONGER line, LONGER step, int tile, int keys, bool aligned) {
    constexpr int PIECES = STRIDE / 8 - 1;
    for (int n = int(threadIdx.x); n < TILE * PIECES; n += THREADS) {
        const int key = n / PIECES, at = n % PIECES * 8;
        const bool there = tile + key < keys && at < SIZE;
        const T *source = from + (there ? (tile + key) * line + at * step : 0);
        T *to = room + key * STRIDE + at;
        if (SIZE % 8 == 0 && aligned)
            fetch(to, source, there);
        else
            UNROLL
            for (int e = 0; e < 8; e++)
                to[e] = there && at + e < SIZE ? source[e * step] : T(0.0f);
    }
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
    constexpr int STEPS = (D + 15) / 16, PARTS = (DV + 15) / 16;
    constexpr int K_STRIDE = STEPS * 16 + 8, V_STRIDE = PARTS * 16 + 8, THREADS = 32 * WARPS;
    __shared__ Sixteen room[TILE * (K_STRIDE + V_STRIDE) / 8];
    T *const near_k = reinterpret_cast<T *>(room);
    T *const near_v = near_k + TILE * K_STRIDE;
    const int groups = sizes[0], queries = sizes[1], keys = sizes[2], shared_heads = sizes[3];
    const int ahead = sizes[9], behind = sizes[10];
    const float scale = numbers[0], cap = numbers[1];
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, group = int(blockIdx.y);
    const int rows = groups * queries, offset = keys - queries;
    // the last rows see most under a causal mask: they begin first
    const int blocks = (rows + 16 * WARPS - 1) / (16 * WARPS);
    const int block = (blocks - 1 - int(blockIdx.x)) * 16 * WARPS, first = block + warp * 16;
    const int from = group % shared_heads * groups;
    const LONGER item = group / shared_heads, shared = group % shared_heads;
    const T *q = in_q + item * in_q_strides[0] + from * in_q_strides[1];
    const T *k = in_k + item * in_k_strides[0] + shared * in_k_strides[1];
    const T *v = in_v + item * in_v_strides[0] + shared * in_v_strides[1];
    const LONGER k_line = in_k_strides[2], k_step = in_k_strides[3];
    const LONGER v_line = in_v_strides[2], v_step = in_v_strides[3];
    const bool aligned = k_step == 1 && v_step == 1 && k_line % 8 == 0 && v_line % 8 == 0
        && (reinterpret_cast<size_t>(k) | reinterpret_cast<size_t>(v)) % 16 == 0;
    const bool even = in_q_strides[3] == 1 && in_q_strides[2] % 2 == 0 && in_q_strides[1] % 2 == 0
        && reinterpret_cast<size_t>(q) % 4 == 0;
    (void)from, (void)cap;
    const int last = (block + 16 * WARPS < rows ? block + 16 * WARPS : rows) - 1;
    const bool one = block / queries == last / queries;
    const int low = (one ? block % queries : 0) + offset, high = (one ? last % queries : queries - 1) + offset;
    int start = low - behind;
    start = start < 0 ? 0 : start - start % TILE;
    int stop = high + ahead + 1;
    stop = stop < keys ? stop : keys;
    const int split = SPLITS > 1 ? int(blockIdx.z) : 0;
    if (SPLITS > 1 && start < stop) {
        const int span = ((stop - start + TILE - 1) / TILE + SPLITS - 1) / SPLITS * TILE;
        start += split * span;
        stop = start + span < stop ? start + span : stop;
    }
    if (start < stop)
        stage<T, D, K_STRIDE, TILE, THREADS>(near_k, k, k_line, k_step, start, keys, aligned);

    const T *line[2];
    int safe[2], reach[2], head[2];
    CELLS
    float most[2], total[2] = {0.0f, 0.0f}, slope[2] = {0.0f, 0.0f};
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        safe[r] = row < rows ? row : rows - 1;
        head[r] = safe[r] / queries;
        reach[r] = safe[r] % queries + offset;
        line[r] = q + head[r] * in_q_strides[1] + safe[r] % queries * in_q_strides[2];
        CELL
        most[r] = -3.4028234663852886e38f;
        SINKS
        SLOPES
    }
    (void)slope, (void)head, (void)split;
    const int column = lane % 4 * 2;
    unsigned query[STEPS][4];
    UNROLL
    for (int step = 0; step < STEPS; step++)
        UNROLL
        for (int e = 0; e < 4; e++)
            query[step][e] = pair<T, D>(line[e % 2], in_q_strides[3], step * 16 + column + e / 2 * 8, even);
    float sum[2 * PARTS][4];
    UNROLL
    for (int n = 0; n < 2 * PARTS; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            sum[n][e] = 0.0f;
    // where this lane's row of four matrices is, of keys and of values
    const T *const key_row = near_k + (lane / 16 * 8 + lane % 8) * K_STRIDE + lane / 8 % 2 * 8;
    const T *const value_row = near_v + (lane / 8 % 2 * 8 + lane % 8) * V_STRIDE + lane / 16 * 8;

    for (int tile = start; tile < stop; tile += TILE) {
        // the keys are there, and nobody needs the values of the tile before
        FETCHED;
        __syncthreads();
        stage<T, DV, V_STRIDE, TILE, THREADS>(near_v, v, v_line, v_step, tile, keys, aligned);
        float score[TILE / 8][4];
        UNROLL
        for (int n = 0; n < TILE / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++)
                score[n][e] = 0.0f;
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
            stage<T, D, K_STRIDE, TILE, THREADS>(near_k, k, k_line, k_step, tile + TILE, keys, aligned);
        const bool edge = tile + TILE > low + ahead + 1 || tile < high - behind || tile + TILE > keys;
        float top[2] = {most[0], most[1]}, fade[2];
        UNROLL
        for (int n = 0; n < TILE / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                const int r = e / 2, key = tile + n * 8 + column + e % 2;
                float x = score[n][e] * scale;
                if (HAS_CAP)
                    x = cap - DIVIDED(2.0f * cap, 1.0f + POWER_OF_2(x * (2.0f * LOG2E / cap)));
                const int away = key - reach[r];
                (void)away;
                if (HAS_SLOPES)
                    x += slope[r] * float(sizes[11] != 0 && away < 0 ? -away : away);
                MASKED
                if (edge && !(away <= ahead && away >= -behind && key < keys))
                    x = -INFINITY;
                score[n][e] = x;
                top[r] = x > top[r] ? x : top[r];
            }
        UNROLL
        for (int r = 0; r < 2; r++) {
            top[r] = row_most(top[r]);
            fade[r] = POWER_OF_2((most[r] - top[r]) * LOG2E);
            most[r] = top[r];
            total[r] *= fade[r];
        }
        UNROLL
        for (int n = 0; n < TILE / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                score[n][e] = POWER_OF_2((score[n][e] - top[e / 2]) * LOG2E);
                // a lane's own keys: the lanes of a row are added up at the end
                total[e / 2] += score[n][e];
            }
        UNROLL
        for (int n = 0; n < 2 * PARTS; n++)
            UNROLL
            for (int e = 0; e < 4; e++)
                sum[n][e] *= fade[e / 2];
        UNROLL
        for (int some = 0; some < TILE / 16; some++) {
            unsigned a[4];
            UNROLL
            for (int e = 0; e < 4; e++) {
                const float *two = score[2 * some + e / 2] + e % 2 * 2;
                a[e] = packed<T>(T(two[0]), T(two[1]));
            }
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

WHOLE = r"""
    T *out = given + LONG(group) * rows * DV;
    UNROLL
    for (int r = 0; r < 2; r++) {
        total[r] = row_sum(total[r]);
        const float share = total[r] > 0.0f ? 1.0f / total[r] : total[r] + numbers[3];
        if (first + lane / 4 + 8 * r < rows)
            UNROLL
            for (int n = 0; n < 2 * PARTS; n++) {
                T *const to = out + LONG(safe[r]) * DV + n * 8 + column;
                const T two[2] = {T(sum[n][2 * r] * share), T(sum[n][2 * r + 1] * share)};
                if (DV % 2 == 0) {
                    if (n * 8 + column < DV)
                        *reinterpret_cast<unsigned *>(to) = packed<T>(two[0], two[1]);
                } else
                    UNROLL
                    for (int e = 0; e < 2; e++)
                        if (n * 8 + column + e < DV)
                            to[e] = two[e];
            }
    }
"""

PART = r"""
    const LONGER before = LONG(split * sizes[12] + group) * rows;
    UNROLL
    for (int r = 0; r < 2; r++) {
        total[r] = row_sum(total[r]);
        if (first + lane / 4 + 8 * r < rows) {
            UNROLL
            for (int n = 0; n < 2 * PARTS; n++)
                UNROLL
                for (int e = 0; e < 2; e++)
                    if (n * 8 + column + e < DV)
                        given[(before + safe[r]) * DV + n * 8 + column + e] = sum[n][2 * r + e];
            if (column == 0)
                marks[(before + safe[r]) * 2] = most[r], marks[(before + safe[r]) * 2 + 1] = total[r];
        }
    }
"""

MERGE = r"""
    const LONGER rows = LONG(sizes[12]) * sizes[0] * sizes[1];
    const LONGER place = LONG(blockIdx.x) * THREADS + int(threadIdx.x), row = place / DV;
    if (row < rows) {
        float top = -3.4028234663852886e38f, total = 0.0f, sum = 0.0f;
        for (int split = 0; split < SPLITS; split++)
            top = fmaxf(top, marks[(split * rows + row) * 2]);
        for (int split = 0; split < SPLITS; split++) {
            const LONGER at = split * rows + row;
            const float weight = POWER_OF_2((marks[at * 2] - top) * LOG2E);
            total += weight * marks[at * 2 + 1];
            sum += weight * parts[at * DV + place % DV];
        }
        given[place] = T(total > 0.0f ? sum / total : total + numbers[3]);
    }
"""
# an axis of one is the same for all: sizes[4] to sizes[7] are 0 there, else 1
CELLS = """const LONGER mask_head = sizes[5] * in_mask_strides[1], mask_row = sizes[6] * in_mask_strides[2];
    const LONGER corner = item * sizes[4] * in_mask_strides[0] + from * mask_head;
    LONGER cell[2];"""
CELL = "cell[r] = corner + head[r] * mask_head + safe[r] % queries * mask_row;"
PLACE = "in_mask[cell[r] + (key < keys ? key : keys - 1) * sizes[7] * in_mask_strides[3]]"
KEEPS = f"x = {PLACE} ? x : numbers[2];"
ADDS = f"x += float({PLACE});"
# a row's four lanes are added up: the sink counts in one of them
SINKS = """if (split == 0) {
            most[r] = float(in_sinks[(from + head[r]) * in_sinks_strides[0]]);
            total[r] = lane % 4 == 0 ? 1.0f : 0.0f;
        }"""
SLOPES = "slope[r] = float(in_slopes[(from + head[r]) * in_slopes_strides[0]]);"


def source(mask: int, sinks: bool, slopes: bool, whole: bool) -> str:
    """The text of the kernel's function; `mask` is 0 for none, 1 for a boolean one, 2 for an additive one.

    If it is not the `whole`, it gives the sums of `SPLITS` parts of the keys, and each row's marks (maximum, total).
    """
    lines = {
        "CELLS": CELLS if mask else "",
        "CELL": CELL if mask else "",
        "SINKS": SINKS if sinks else "",
        "SLOPES": SLOPES if slopes else "",
        "MASKED": ("", KEEPS, ADDS)[mask],
        "END": WHOLE if whole else PART,
    }
    return re.sub(rf"^( +)({'|'.join(lines)})$", lambda found: found[1] + lines[found[2]], BODY, flags=re.MULTILINE)


def tile(depth: int, width: int) -> int:
    """How many keys are worked on at once: what shared memory and registers have room for."""
    return 64 if max(depth, width) <= 128 else 32


def splits(blocks: int, keys: int, size: int) -> int:
    """Over how many blocks the keys are shared out, where there are `blocks` without that and tiles of `size` keys."""
    return max(1, min(FULL // blocks, keys // (LEAST * size))) if blocks > 0 else 1
