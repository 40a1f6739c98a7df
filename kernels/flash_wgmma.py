"""Our attention kernel for half types on Hopper GPUs (compute capability 9.0): products of whole warpgroups, `wgmma`.

A block's warpgroups own 64 rows of queries each; these lie in shared memory, and so do two tiles of keys and two of
values, which all warpgroups share. While the products of a tile's weights with its values and of the queries with the
next keys go on, the tile after that is fetched, and the next scores become weights.

A tile lies in shared memory in pieces of 64 numbers a row (128 bytes), whose eight chunks of 16 bytes change places
with the row: the "128-byte swizzle" that `wgmma` reads.

Source: Shah et al., FlashAttention-3 (arXiv:2407.08608), for the order of work inside of a warpgroup; the PTX manual
for `wgmma` and its descriptors.
"""

from __future__ import annotations

from fuser.kernels import flash_tiles

WARPS = 8

HEADER = (
    r"""
#ifndef SIMULATED
// registers are shared out for blocks of this size
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(BLOCK_SIZE, 1)
#endif
"""
    + flash_tiles.HEADER
    + r"""
typedef unsigned long long Descriptor;
#ifndef SIMULATED
#define NEAR(pointer) unsigned(__cvta_generic_to_shared(pointer))
#define ROOM(bytes)                                                                                            \
    extern __shared__ Sixteen dynamic_room[];                                                                  \
    char *const room = reinterpret_cast<char *>(dynamic_room) + (-NEAR(dynamic_room) & 1023)
// ordinary stores before it are seen by what follows the next barrier
#define SETTLED asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
#define PREPARED asm volatile("wgmma.fence.sync.aligned;" ::: "memory")
#define STARTED asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")
#define ALL_BUT(count) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(count) : "memory")
// numbers of a product that has just ended: what uses them stays behind
template <int COUNT>
__device__ inline void held(float (*x)[4]) {
    UNROLL
    for (int n = 0; n < COUNT; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            asm volatile("" : "+f"(x[n][e])::"memory");
}
PRODUCTS
#endif
// where a matrix lies, rows of 128 bytes in groups of eight; `apart`: the bytes from 64 numbers of a row to the next
__device__ inline Descriptor described(const void *from, int apart) {
    const Descriptor rows_apart = 1024 >> 4, swizzled = 1;
    return Descriptor(NEAR(from) >> 4) | Descriptor(apart >> 4) << 16 | rows_apart << 32 | swizzled << 62;
}
"""
)

BODY = r"""
    constexpr int STEPS = (D + 15) / 16, COLUMNS = (DV + 7) / 8, THREADS = 32 * WARPS;
    // pieces of 64 numbers in a row
    constexpr int K_PIECES = (STEPS * 16 + 63) / 64, V_PIECES = (COLUMNS * 8 + 63) / 64;
    constexpr int Q_SIZE = K_PIECES * 16 * WARPS * 64, K_SIZE = K_PIECES * TILE * 64, V_SIZE = V_PIECES * TILE * 64;
    ROOM(2 * (Q_SIZE + 2 * K_SIZE + 2 * V_SIZE));
    T *const near_q = reinterpret_cast<T *>(room);
    T *const near_k = near_q + Q_SIZE, *const near_v = near_k + 2 * K_SIZE;
    PLACES
    const bool q_aligned = in_q_strides[3] == 1 && in_q_strides[2] % K_PIECE == 0 && in_q_strides[1] % K_PIECE == 0
        && reinterpret_cast<size_t>(q) % (2 * K_PIECE) == 0;
    // a number's place in a tile of so many rows
    auto swizzled = [](int count, int row, int at) {
        return (at / 64 * count + row) * 64 + (at / 8 ^ row) % 8 * 8 + at % 8;
    };
    auto stage_keys = [&](int tile, T *room) {
        stage<T, D, STEPS * 16, TILE, THREADS, true>([&](int row, int at) { return room + swizzled(TILE, row, at); },
            [&](int row) { return k + (tile + row) * k_line; }, keys - tile, k_step, k_aligned);
    };
    auto stage_values = [&](int tile, T *room) {
        stage<T, DV, COLUMNS * 8, TILE, THREADS, true>([&](int row, int at) { return room + swizzled(TILE, row, at); },
            [&](int row) { return v + (tile + row) * v_line; }, keys - tile, v_step, v_aligned);
    };
    if (start < stop) {
        stage<T, D, STEPS * 16, 16 * WARPS, THREADS, false>(
            [&](int row, int at) { return near_q + swizzled(16 * WARPS, row, at); },
            [&](int row) {
                const int place = block + row;
                return q + place / queries * in_q_strides[1] + place % queries * in_q_strides[2];
            },
            rows - block, in_q_strides[3], q_aligned);
        stage_keys(start, near_k);
        stage_values(start, near_v);
        if (start + TILE < stop)
            stage_keys(start + TILE, near_k + K_SIZE);
    }
    ROWS
    const Descriptor queries_at = described(near_q + warp / 4 * 64 * 64, 16);
    const Descriptor keys_at = described(near_k, 16), values_at = described(near_v, TILE * 128);
    float score[TILE / 8][4], sum[COLUMNS][4];
    unsigned weight[TILE / 16][4];
    cleared<COLUMNS>(sum);
    cleared<TILE / 8>(score);
    // of this warpgroup's own rows
    int lowest, highest;
    const int mine = block + warp / 4 * 64;
    reached(mine, (mine + 64 < rows ? mine + 64 : rows) - 1, queries, offset, lowest, highest);
    auto multiply_keys = [&](int odd) {
        UNROLL
        for (int step = 0; step < STEPS; step++)
            score_product(score[0], queries_at + ((step / 4 * (16 * WARPS * 128) + step % 4 * 32) >> 4),
                keys_at + ((odd * (2 * K_SIZE) + step / 4 * (TILE * 128) + step % 4 * 32) >> 4), step > 0);
        STARTED;
    };
    auto multiply_values = [&](int odd) {
        UNROLL
        for (int some = 0; some < TILE / 16; some++)
            value_product(sum[0], weight[some], values_at + ((odd * (2 * V_SIZE) + some * 2048) >> 4), 1);
        STARTED;
    };
    auto soften = [&](int tile) {
        const int low = lowest, high = highest;
        SOFTEN
    };
    auto pack = [&]() {
        UNROLL
        for (int some = 0; some < TILE / 16; some++)
            weighed<T, BRAIN>(weight[some], score + 2 * some);
    };
    if (start < stop) {
        FETCHED;
        SETTLED;
        __syncthreads();
        PREPARED;
        multiply_keys(0);
        ALL_BUT(0);
        held<TILE / 8>(score);
        soften(start);
        pack();
        int tile = start, odd = 0;
        for (; tile + TILE < stop; tile += TILE, odd ^= 1) {
            // the next keys and these values are there, and nobody needs these keys and the values before
            FETCHED;
            SETTLED;
            __syncthreads();
            PREPARED;
            multiply_keys(odd ^ 1);
            multiply_values(odd);
            if (tile + 2 * TILE < stop)
                stage_keys(tile + 2 * TILE, near_k + odd * K_SIZE);
            stage_values(tile + TILE, near_v + (odd ^ 1) * V_SIZE);
            ALL_BUT(1);
            held<TILE / 8>(score);
            soften(tile + TILE);
            // totals are never below zero: to ask keeps the work on weights before the wait, while products go on
            const bool less = fade[0] != 1.0f || fade[1] != 1.0f || fminf(total[0], total[1]) < 0.0f;
            const bool faded = __any_sync(0xffffffffu, less);
            ALL_BUT(0);
            held<COLUMNS>(sum);
            if (faded)
                UNROLL
                for (int n = 0; n < COLUMNS; n++)
                    UNROLL
                    for (int e = 0; e < 4; e++)
                        sum[n][e] *= fade[e / 2];
            pack();
        }
        FETCHED;
        SETTLED;
        __syncthreads();
        PREPARED;
        multiply_values(odd);
        ALL_BUT(0);
        held<COLUMNS>(sum);
    }
    END
"""


def header(width: int, tile: int, brain: bool) -> str:
    """The text before the kernel's function, with products for tiles of `tile` keys and heads of `width` values."""
    type = "bf16" if brain else "f16"
    # which operands are turned, for matrices in shared memory alone
    scores = _product("score_product", type, tile, ["Descriptor a"], ["l(a)"], ", 0, 0")
    values = _product(
        "value_product", type, -(-width // 8) * 8, ["const unsigned *a"], [f"r(a[{n}])" for n in range(4)], ", 1"
    )
    return HEADER.replace("PRODUCTS", scores + values).replace("BLOCK_SIZE", str(32 * WARPS))


def _product(name: str, type: str, columns: int, left: list[str], operands: list[str], turned: str) -> str:
    """A function that starts c += a b for 64 rows of a warpgroup and sixteen numbers of each."""
    count = columns // 2
    places = ", ".join(f"%{n}" for n in range(count))
    a = ", ".join(f"%{count + n}" for n in range(len(operands)))
    a = f"{{{a}}}" if len(operands) > 1 else a
    b, add = (f"%{count + len(operands) + n}" for n in range(2))
    results = ", ".join(f'"+f"(c[{n}])' for n in range(count))
    given = ", ".join(f'"{each[0]}"{each[1:]}' for each in [*operands, "l(b)", "r(add)"])
    return f"""
__device__ inline void {name}(float *c, {left[0]}, Descriptor b, int add) {{
    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, {add}, 0;\\n"
                 "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{type}.{type} "
                 "{{{places}}}, {a}, {b}, p, 1, 1{turned};\\n}}"
                 : {results} : {given});
}}
"""


def tile(depth: int, width: int) -> int:
    """How many keys are worked on at once: what shared memory and registers have room for."""
    widest = max(depth, width)
    return 128 if widest <= 128 else 80


def room(depth: int, width: int, tile: int) -> int:
    """The bytes of shared memory that a block takes."""
    pieces, value_pieces = -(-depth // 64), -(-width // 64)
    return 128 * (pieces * (16 * WARPS + 2 * tile) + value_pieces * 2 * tile) + 1024
