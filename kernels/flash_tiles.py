"""What our two kernels for half types on CUDA have in common: rows, masks, the running maximum, the answer.

A block of threads owns rows of queries, and goes over the keys a tile at a time. The lanes hold products as `mma.sync`
and `wgmma` give them: lane l of a warp has its rows l / 4 and l / 4 + 8, and of each eight columns two, from 2 (l % 4)
on. The queries of all heads that share keys are rows of one block.

A few queries over many keys do not fill a GPU: then the keys are shared out over `SPLITS` blocks (Flash-Decoding),
whose sums a second kernel adds up.

Source: Dao, FlashAttention-2 (arXiv:2307.08691), for the order of work.
"""

from __future__ import annotations

import re

HEADER = r"""
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define LONG (long long)
#define LONGER long long
#define UNROLL _Pragma("unroll")
#define LOG2E 1.4426950408889634f
#define LOWEST -3.4028234663852886e38f

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
// bytes into shared memory, zeros where there are none; it goes on while others work
template <int BYTES>
__device__ inline void fetch(void *to, const void *from, bool there) {
    const unsigned place = unsigned(__cvta_generic_to_shared(to));
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(there ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(place), "l"(from), "r"(there ? 8 : 0)
                     : "memory");
}
#define FETCHED asm volatile("cp.async.wait_all;" ::: "memory")
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
template <typename T, bool BRAIN>
__device__ inline unsigned rounded(float first, float second) {
    unsigned two;
    if (BRAIN)
        asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(two) : "f"(first), "f"(second));
    else
        asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(two) : "f"(first), "f"(second));
    return two;
}
#define DIVIDED(x, y) __fdividef(x, y)
#endif

// rows from `from(row)` to where `to(row, place)` says: SPAN numbers of each, zeros beyond its SIZE and after `count`.
// Numbers are `step` apart, all rows as far as the first two if they are EVEN
template <typename T, int SIZE, int SPAN, int ROWS, int THREADS, bool EVEN, typename To, typename From>
__device__ inline void stage(To to, From from, int count, LONGER step, bool aligned) {
    constexpr int PIECE = SIZE % 8 == 4 ? 4 : 8, PIECES = SPAN / PIECE;
    // threads that share out a row: all are busy, or it is a power of 2
    constexpr int POWER = PIECES <= 8 ? 8 : PIECES <= 16 ? 16 : PIECES <= 32 ? 32 : 64;
    constexpr int SHARING = THREADS % PIECES == 0 ? PIECES : POWER < THREADS ? POWER : THREADS;
    constexpr int AT_ONCE = THREADS / SHARING;
    const int at = int(threadIdx.x) % SHARING * PIECE, first = int(threadIdx.x) / SHARING;
    if (SHARING >= PIECES && SIZE % 4 == 0 && aligned) {
        const T *source = from(first) + at;
        const LONGER apart = from(AT_ONCE) - from(0);
        if (at < SPAN)
            UNROLL
            for (int n = 0; n < (ROWS + AT_ONCE - 1) / AT_ONCE; n++) {
                const int row = first + n * AT_ONCE;
                if (ROWS % AT_ONCE == 0 || row < ROWS)
                    fetch<2 * PIECE>(to(row, at), source, row < count && at < SIZE);
                source = EVEN ? source + apart : from(row + AT_ONCE) + at;
            }
        return;
    }
    for (int row = first; row < ROWS; row += AT_ONCE)
        for (int place = at; place < SPAN; place += SHARING * PIECE) {
            const T *source = from(row < count ? row : 0);
            T *target = to(row, place);
            for (int e = 0; e < PIECE; e++)
                target[e] = row < count && place + e < SIZE ? source[(place + e) * step] : T(0.0f);
        }
}

// the columns of the first and of the last key that rows reach, of which each head has so many `queries`
__device__ inline void reached(int first, int last, int queries, int offset, int &low, int &high) {
    const bool one = first / queries == last / queries;
    low = (one ? first % queries : 0) + offset, high = (one ? last % queries : queries - 1) + offset;
}

template <int COUNT>
__device__ inline void cleared(float (*x)[4]) {
    UNROLL
    for (int n = 0; n < COUNT; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            x[n][e] = 0.0f;
}

// the weights of sixteen keys, as the left side of a product has them
template <typename T, bool BRAIN>
__device__ inline void weighed(unsigned *a, const float (*score)[4]) {
    UNROLL
    for (int e = 0; e < 4; e++) {
        const float *two = score[e / 2] + e % 2 * 2;
        a[e] = rounded<T, BRAIN>(two[0], two[1]);
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

# which rows, keys and values a block has
PLACES = r"""
    const int groups = sizes[0], queries = sizes[1], keys = sizes[2], shared_heads = sizes[3];
    const int ahead = sizes[9], behind = sizes[10];
    const float scale = numbers[0], cap = numbers[1];
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    // under a causal mask the last rows, of all heads, begin first: they see most
    const int group = int(LAST_FIRST ? blockIdx.x : blockIdx.y), turn = int(LAST_FIRST ? blockIdx.y : blockIdx.x);
    const int rows = groups * queries, offset = keys - queries, blocks = (rows + 16 * WARPS - 1) / (16 * WARPS);
    const int block = (blocks - 1 - turn) * 16 * WARPS, first = block + warp * 16;
    const int from = group % shared_heads * groups;
    const LONGER item = group / shared_heads, shared = group % shared_heads;
    const T *q = in_q + item * in_q_strides[0] + from * in_q_strides[1];
    const T *k = in_k + item * in_k_strides[0] + shared * in_k_strides[1];
    const T *v = in_v + item * in_v_strides[0] + shared * in_v_strides[1];
    const LONGER k_line = in_k_strides[2], k_step = in_k_strides[3];
    const LONGER v_line = in_v_strides[2], v_step = in_v_strides[3];
    // numbers that are fetched at once: four or eight
    constexpr int K_PIECE = D % 8 == 4 ? 4 : 8, V_PIECE = DV % 8 == 4 ? 4 : 8;
    const bool k_aligned = k_step == 1 && k_line % K_PIECE == 0 && reinterpret_cast<size_t>(k) % (2 * K_PIECE) == 0;
    const bool v_aligned = v_step == 1 && v_line % V_PIECE == 0 && reinterpret_cast<size_t>(v) % (2 * V_PIECE) == 0;
    (void)from, (void)cap;
    // the columns that this block's rows see
    const int last = (block + 16 * WARPS < rows ? block + 16 * WARPS : rows) - 1;
    int low, high;
    reached(block, last, queries, offset, low, high);
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
"""

# what a lane knows of its two rows; `unit` is what a score is of a power of 2
ROWS = r"""
    int safe[2], reach[2], head[2];
    CELLS
    const float unit = DIRECT ? scale * LOG2E : LOG2E;
    float most[2], total[2] = {0.0f, 0.0f}, slope[2] = {0.0f, 0.0f}, fade[2];
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        safe[r] = row < rows ? row : rows - 1;
        head[r] = safe[r] / queries;
        reach[r] = safe[r] % queries + offset;
        CELL
        // the lowest number; without any other to meet, one that stays finite after the product with `unit`
        most[r] = DIRECT ? LOWEST / fmaxf(unit, 1.0f) : LOWEST;
        SINKS
        SLOPES
    }
    (void)slope, (void)head, (void)split;
    const int column = lane % 4 * 2;
"""

# scores become weights: for the keys from `tile` on, under the maximum so far
SOFTEN = r"""
        const bool edge = tile + TILE > low + ahead + 1 || tile < high - behind || tile + TILE > keys;
        float top[2] = {most[0], most[1]}, base[2];
        if (!DIRECT)
            UNROLL
            for (int n = 0; n < TILE / 8; n++)
                UNROLL
                for (int e = 0; e < 4; e++) {
                    const int r = e / 2, key = tile + n * 8 + column + e % 2, away = key - reach[r];
                    float x = score[n][e] * scale;
                    if (HAS_CAP)
                        x = cap - DIVIDED(2.0f * cap, 1.0f + power_of_2(x * (2.0f * LOG2E / cap)));
                    if (HAS_SLOPES)
                        x += slope[r] * float(sizes[11] != 0 && away < 0 ? -away : away);
                    MASKED
                    (void)away;
                    score[n][e] = x;
                }
        if (edge)
            UNROLL
            for (int n = 0; n < TILE / 8; n++)
                UNROLL
                for (int e = 0; e < 4; e++) {
                    const int key = tile + n * 8 + column + e % 2, away = key - reach[e / 2];
                    if (!(away <= ahead && away >= -behind && key < keys))
                        score[n][e] = -INFINITY;
                }
        UNROLL
        for (int n = 0; n < TILE / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++)
                top[e / 2] = fmaxf(top[e / 2], score[n][e]);
        UNROLL
        for (int r = 0; r < 2; r++) {
            top[r] = row_most(top[r]);
            fade[r] = power_of_2((most[r] - top[r]) * unit);
            most[r] = top[r];
            base[r] = top[r] * unit;
            total[r] *= fade[r];
        }
        UNROLL
        for (int n = 0; n < TILE / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                const float x = DIRECT ? score[n][e] * unit - base[e / 2] : (score[n][e] - top[e / 2]) * unit;
                score[n][e] = power_of_2(x);
                // a lane's own keys: the lanes of a row are added up at the end
                total[e / 2] += score[n][e];
            }
        (void)base;
"""

WHOLE = r"""
    T *out = given + LONG(group) * rows * DV;
    UNROLL
    for (int r = 0; r < 2; r++) {
        total[r] = row_sum(total[r]);
        const float share = total[r] > 0.0f ? 1.0f / total[r] : total[r] + numbers[3];
        if (first + lane / 4 + 8 * r < rows)
            UNROLL
            for (int n = 0; n < COLUMNS; n++) {
                T *const to = out + LONG(safe[r]) * DV + n * 8 + column;
                const unsigned two = rounded<T, BRAIN>(sum[n][2 * r] * share, sum[n][2 * r + 1] * share);
                if (DV % 2 == 0) {
                    if (n * 8 + column < DV)
                        *reinterpret_cast<unsigned *>(to) = two;
                } else
                    UNROLL
                    for (int e = 0; e < 2; e++)
                        if (n * 8 + column + e < DV)
                            to[e] = reinterpret_cast<const T *>(&two)[e];
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
            for (int n = 0; n < COLUMNS; n++)
                UNROLL
                for (int e = 0; e < 2; e++)
                    if (n * 8 + column + e < DV)
                        given[(before + safe[r]) * DV + n * 8 + column + e] = sum[n][2 * r + e];
            if (column == 0) {
                marks[(before + safe[r]) * 2] = DIRECT ? most[r] * scale : most[r];
                marks[(before + safe[r]) * 2 + 1] = total[r];
            }
        }
    }
"""

MERGE = r"""
    const LONGER rows = LONG(sizes[12]) * sizes[0] * sizes[1];
    const LONGER place = LONG(blockIdx.x) * THREADS + int(threadIdx.x), row = place / DV;
    if (row < rows) {
        float top = LOWEST, total = 0.0f, sum = 0.0f;
        for (int split = 0; split < SPLITS; split++)
            top = fmaxf(top, marks[(split * rows + row) * 2]);
        for (int split = 0; split < SPLITS; split++) {
            const LONGER at = split * rows + row;
            const float weight = power_of_2((marks[at * 2] - top) * LOG2E);
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


def completed(body: str, mask: int, sinks: bool, slopes: bool, whole: bool) -> str:
    """The text of a kernel's function; `mask` is 0 for none, 1 for a boolean one, 2 for an additive one.

    If it is not the `whole`, it gives the sums of `SPLITS` parts of the keys, and each row's marks (maximum, total).
    """
    lines = {
        "PLACES": PLACES,
        "ROWS": ROWS,
        "SOFTEN": SOFTEN,
        "END": WHOLE if whole else PART,
        "CELLS": CELLS if mask else "",
        "CELL": CELL if mask else "",
        "SINKS": SINKS if sinks else "",
        "SLOPES": SLOPES if slopes else "",
        "MASKED": ("", KEEPS, ADDS)[mask],
    }
    # the first ones hold others
    for _ in range(2):
        body = re.sub(rf"^ *({'|'.join(lines)})$", lambda found: lines[found[1]].strip("\n"), body, flags=re.MULTILINE)
    return body
