"""The preludes of the body for CUDA and Metal, and the call through MLX's custom kernels.

A row of queries is shared out over `PARTS` neighbouring threads, four numbers of the head each in turn, so that rows of
256 numbers stay in registers and the threads of a row read keys and values in one piece. MLX builds a kernel once for a
type and head size and keeps it.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from fuser.kernels import flash_mma, flash_tiles, flash_wgmma
from fuser.kernels.admission import backend
from fuser.kernels.bands import FAR
from fuser.kernels.flash_body import BODY

WIDEST = 256
THREADS = 128

SHARED = r"""
#define FIRST first
#define BLOCK (THREADS / PARTS)
#define LANE lane
#define REAL float
#define WHOLE int
#define OWN(i) ((i) / 4 * (4 * PARTS) + part * 4 + (i) % 4)
#define OWN_DEPTH ((D + 4 * PARTS - 1) / (4 * PARTS) * 4)
#define OWN_WIDTH ((DV + 4 * PARTS - 1) / (4 * PARTS) * 4)
#define DEPTH_HERE OWN_DEPTH
#define WIDTH_HERE OWN_WIDTH
#define TILE 16
#define TILE_START
#define TILE_HERE TILE
#define KEYS_AT_ONCE 16
#define VALUES_AT_ONCE 4
#define FETCH 4
#define SPLAT(x) (x)
#define WHOLE_SPLAT(x) (x)
#define AS_REAL(x) float(x)
#define TAKE(base, index) float((base)[index])
#define MASK_START
#define NEAR(key) ((key) < KEYS ? (key) : KEYS - 1)
#define KEPT_AT(key) keep[cell + NEAR(key) * sizes[8]]
#define BIAS_AT(key) float(bias[cell + NEAR(key) * sizes[8]])
#define PUT(base, index, there, value) { if (there) (base)[index] = T(value); }
#define SUMMED(x) summed<PARTS>(x)
#define YES true
#define NO false
#define LOWEST -3.4028234663852886e38f
#define HIDDEN -INFINITY
#define KEY_AT(key, c, i) \
    float number[4]; \
    fetch4<T, D, PARTS>(k + LONG(NEAR((key) + (c))) * D, OWN(i), aligned, number);
#define VALUE_AT(key, i) \
    float number[4]; \
    fetch4<T, DV, PARTS>(v + LONG(NEAR(key)) * DV, OWN(i), aligned, number);
#define GROUPS groups
#define QUERIES queries
#define KEYS keys
#define DEPTH D
#define WIDTH DV
#define SCALE scale
#define CAP cap
#define FILL numbers[2]
#define EMPTY numbers[3]
#define CAPPED HAS_CAP
#define SINKS HAS_SINKS
#define SLOPES HAS_SLOPES
#define MASK MASK_KIND
#define MASK_HEAD sizes[6]
#define MASK_ROW sizes[7]
#define FOLDED (sizes[11] != 0)
#define AHEAD ahead
#define BEHIND behind
"""

CUDA = (
    r"""
#define LONG (long long)
#define EXP expf
#define TANH tanhf
#define UNROLL _Pragma("unroll")
#define UNROLL_DEPTH _Pragma("unroll")
#define UNROLL_WIDTH _Pragma("unroll")
#define UNROLL_TILE _Pragma("unroll")
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

template <int PARTS>
__device__ inline float summed(float x) {
    _Pragma("unroll") for (int step = 1; step < PARTS; step *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

template <typename T, int SIZE, int PARTS>
__device__ inline void fetch4(const T *row, int first, bool aligned, float *number) {
    if (SIZE % (4 * PARTS) == 0 && aligned) {
        const Four<T> four = *reinterpret_cast<const Four<T> *>(row + first);
        _Pragma("unroll") for (int e = 0; e < 4; e++)
            number[e] = float(four.at[e]);
    } else {
        _Pragma("unroll") for (int e = 0; e < 4; e++)
            number[e] = SIZE % (4 * PARTS) == 0 || first + e < SIZE ? float(row[first + e]) : 0.0f;
    }
}
"""
    + SHARED
)

METAL = (
    r"""
#include <metal_stdlib>
using namespace metal;
#define LONG (long)
#define EXP metal::precise::exp
#define TANH metal::precise::tanh
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_DEPTH _Pragma("clang loop unroll(full)")
#define UNROLL_WIDTH _Pragma("clang loop unroll(full)")
#define UNROLL_TILE _Pragma("clang loop unroll(full)")

template <int PARTS>
inline float summed(float x) {
    for (int step = 1; step < PARTS; step *= 2)
        x += simd_shuffle_xor(x, ushort(step));
    return x;
}

template <typename T, int SIZE, int PARTS, typename P>
inline void fetch4(P row, int first, bool aligned, thread float *number) {
    for (int e = 0; e < 4; e++)
        number[e] = SIZE % (4 * PARTS) == 0 || first + e < SIZE ? float(row[first + e]) : 0.0f;
}
"""
    + SHARED
)

START = r"""
    const int groups = sizes[0], queries = sizes[1], keys = sizes[2], shared_heads = sizes[3];
    const int ahead = sizes[9], behind = sizes[10];
    const float scale = numbers[0], cap = numbers[1];
    const int worker = THREAD_AT, group = GROUP_AT;
    const int part = worker % PARTS, lane = worker / PARTS;
    const int first = ITEM_AT * (THREADS / PARTS);
    auto q = in_q + LONG(group) * groups * queries * D;
    auto k = in_k + LONG(group) * keys * D;
    auto v = in_v + LONG(group) * keys * DV;
    auto out = given + LONG(group) * groups * queries * DV;
    const int from = group % shared_heads * groups;
    const bool aligned = ALIGNED;
    (void)aligned, (void)cap, (void)from;
"""
# MLX looks for the names of Metal's built-in arguments in the source itself
PLACES = {
    "cuda": {
        "THREAD_AT": "int(threadIdx.x)",
        "GROUP_AT": "int(blockIdx.y)",
        "ITEM_AT": "int(blockIdx.x)",
        "ALIGNED": "(reinterpret_cast<size_t>(k) | reinterpret_cast<size_t>(v)) % 16 == 0",
    },
    "metal": {
        "THREAD_AT": "int(thread_position_in_threadgroup.x)",
        "GROUP_AT": "int(threadgroup_position_in_grid.y)",
        "ITEM_AT": "int(threadgroup_position_in_grid.x)",
        "ALIGNED": "false",
    },
}


def source(where: str, mask: bool, sinks: bool, slopes: bool) -> str:
    """The text of the kernel's function for a choice of arrays."""
    start = START
    for name, place in PLACES[where].items():
        start = start.replace(name, place)
    # the body names all arrays: those that are not given are another's, and never read
    lines = [
        f"auto {name} = {f'{given} + {corner}' if there else 'numbers'};"
        for name, given, corner, there in (
            ("keep", "in_mask", "LONG(group / shared_heads) * sizes[4] + LONG(group % shared_heads) * sizes[5]", mask),
            ("sinks", "in_sinks", "from", sinks),
            ("slopes", "in_slopes", "from", slopes),
        )
    ]
    return start + "    " + " ".join(lines) + "\n    auto bias = keep;\n    (void)bias;\n" + BODY


Constants = tuple[tuple[str, int], ...]
Cores = Literal["mma", "wgmma"] | None


@functools.cache
def kernel(
    where: str, mask: int, sinks: bool, slopes: bool, types: tuple[mx.Dtype, ...], constants: Constants
) -> Callable[..., Any]:
    """MLX's custom kernel for a choice of arrays: `types` are those of mask, sinks and slopes, where they are there.

    `where` is a backend, or "cores" for CUDA's tensor cores ("groups" for those of Hopper): "parts" where it gives the
    sums of parts, and "merge" for what adds those up.
    """
    outputs = ["given", "marks"] if where == "parts" else ["given"]
    more: dict[str, Any] = {}
    names = ["in_q", "in_k", "in_v", "sizes", "numbers"]
    names += [name for name, there in (("in_mask", mask), ("in_sinks", sinks), ("in_slopes", slopes)) if there]
    header = METAL if where == "metal" else CUDA if where == "cuda" else flash_mma.HEADER
    if where == "merge":
        names, text = ["parts", "marks", "sizes", "numbers"], flash_tiles.MERGE
    elif where in ("cores", "parts"):
        text = flash_tiles.completed(flash_mma.BODY, mask, sinks, slopes, where == "cores")
    elif where == "groups":
        known = dict(constants)
        header = flash_wgmma.header(known["DV"], known["TILE"], bool(known["BRAIN"]))
        text = flash_tiles.completed(flash_wgmma.BODY, mask, sinks, slopes, True)
        more["shared_memory"] = flash_wgmma.room(known["D"], known["DV"], known["TILE"])
    else:
        text = source(where, mask > 0, sinks, slopes)
    # as template arguments they would cost every call of it
    lines = [f"constexpr {type(value).__name__} {name} = {value:d};\n" for name, value in constants]
    text = "".join(["    " + line for line in (f"// {', '.join(map(str, types))}\n", *lines)]) + text
    make: Any = mx.fast.metal_kernel if where == "metal" else mx.fast.cuda_kernel
    made: Callable[..., Any] = make(
        # MLX keeps what it has built by this name, from one process to another
        name=f"fuser_attention_{hashlib.sha256((header + text).encode()).hexdigest()[:16]}",
        input_names=names,
        output_names=outputs,
        source=text,
        header=header,
        # what runs on tensor cores reads arrays as they lie
        ensure_row_contiguous=where not in ("cores", "parts", "groups"),
        **more,
    )
    return made


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | None = None,
    sinks: mx.array | None = None,
    slopes: mx.array | None = None,
    folded: bool = False,
    softcap: float = 0.0,
    ahead: int = FAR,
    behind: int = FAR,
    fill: float = -math.inf,
    empty: float = 0.0,
    cores: Cores = None,
) -> mx.array:
    """As `fuser.kernels.host.attend`, on the GPU, for float32, float16 and bfloat16 arrays of one type.

    `cores` asks for CUDA's tensor cores, for half types: "mma" for any GPU's, "wgmma" for Hopper's.
    """
    if cores and mask is not None and mask.ndim < 4:
        mask = mask[(None,) * (4 - mask.ndim)]
    known = plan(
        (q.shape, k.shape, v.shape),
        q.dtype,
        mask.shape if mask is not None else None,
        tuple([None if array is None else array.dtype for array in (mask, sinks, slopes)]),
        (folded, softcap > 0, scale > 0, cores),
        (ahead, behind),
    )
    numbers = _constants((scale, softcap, fill, empty), mx.float32)
    given = [array for array in (q, k, v, known.sizes, numbers, mask, sinks, slopes) if array is not None]
    for which, options in known.calls:
        found = kernel(*which)(inputs=given, **options)
        given = [*found, known.sizes, numbers]
    return found[0]  # type: ignore[no-any-return]


class Plan(NamedTuple):
    """What is the same in every call of the same sizes and types."""

    sizes: mx.array
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """One kernel, or two: the arguments of `kernel`, and the keywords of its call."""


@functools.lru_cache(512)
def plan(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    dtype: mx.Dtype,
    mask: tuple[int, ...] | None,
    types: tuple[mx.Dtype | None, mx.Dtype | None, mx.Dtype | None],
    features: tuple[bool, bool, bool, Cores],
    window: tuple[int, int],
) -> Plan:
    """The calls for q, k, v and a mask of these shapes; `types` are those of mask, sinks and slopes.

    The `features` are folded, capped, whether the scale is positive, cores.
    """
    (batch, heads, queries, depth), (_, shared, keys, _), (_, _, _, width) = shapes
    (_, sinks, slopes), (folded, capped, positive, cores) = types, features
    groups = heads // shared
    steps, kind = [0] * 5, 0
    if mask is not None:
        batch_step, head_step, row_step, key_step = _steps((1,) * (4 - len(mask)) + mask)
        steps = [batch_step, head_step * groups, head_step, row_step, key_step]
        if cores:
            # that kernel knows the strides, but for an axis of one, which is the same for all
            steps = [*(int(size > 1) for size in mask), 0]
        kind = 1 if types[0] == mx.bool_ else 2
    sizes = [groups, queries, keys, shared, *steps, *(min(limit, FAR) for limit in window), int(folded), batch * shared]
    widest = max(depth, width)
    constants: list[tuple[str, int]] = [("D", depth), ("DV", width)]
    constants += [("HAS_SLOPES", slopes is not None), ("HAS_CAP", capped)]
    splits, last_first = 1, False

    def blocks_of(rows: int) -> int:
        return -(-groups * queries // rows)

    if cores:
        tile = flash_mma.tile(depth, width)
        splits = flash_mma.splits(blocks_of(16 * flash_mma.WARPS) * batch * shared, keys, tile)
        where, warps = "cores" if splits == 1 else "parts", flash_mma.WARPS
        if cores == "wgmma" and splits == 1:
            where, warps, tile = "groups", flash_wgmma.WARPS, flash_wgmma.tile(depth, width)
        rows, threads = 16 * warps, 32 * warps
        # what sees no key ahead has more work for later rows
        last_first = window[0] == 0 and blocks_of(rows) < 1 << 16
        constants += [("WARPS", warps), ("TILE", tile), ("BRAIN", dtype == mx.bfloat16), ("SPLITS", splits)]
        direct = positive and not (kind or sinks is not None or slopes is not None or capped)
        constants += [("DIRECT", direct), ("LAST_FIRST", last_first)]
    else:
        parts = 2 if widest <= 64 else 4 if widest <= 128 else 8
        where, rows, threads = backend(), THREADS // parts, THREADS
        constants += [("PARTS", parts), ("THREADS", threads), ("MASK_KIND", kind), ("HAS_SINKS", sinks is not None)]
    blocks, shares = (batch * shared, blocks_of(rows)) if last_first else (blocks_of(rows), batch * shared)
    given = tuple(type for type in types if type is not None)
    out = (batch, heads, queries, width)
    options: dict[str, Any] = {
        "template": [("T", dtype)],
        "grid": (blocks * threads, shares, splits),
        "threadgroup": (threads, 1, 1),
        "output_shapes": [out] if splits == 1 else [(splits, *out), (splits, *out[:3], 2)],
        "output_dtypes": [dtype] if splits == 1 else [mx.float32, mx.float32],
    }
    calls = [((where, kind, sinks is not None, slopes is not None, given, tuple(constants)), options)]
    if splits > 1:
        size = batch * heads * queries * width
        merge = options | {"grid": (-(-size // THREADS) * THREADS, 1, 1), "threadgroup": (THREADS, 1, 1)}
        merge |= {"output_shapes": [out], "output_dtypes": [dtype]}
        some = (("DV", width), ("SPLITS", splits), ("THREADS", THREADS))
        calls.append((("merge", 0, False, False, (), some), merge))
    return Plan(_constants(tuple(sizes), mx.int32), calls)


@functools.lru_cache(512)
def _constants(numbers: tuple[float, ...], dtype: mx.Dtype) -> mx.array:
    """The same few numbers come with every call: their array is made once."""
    return mx.array(numbers, dtype)


def _steps(shape: Sequence[int]) -> list[int]:
    """The strides of a dense array, 0 where it does not vary."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step if size != 1 else 0)
        step *= size
    return steps[::-1]
