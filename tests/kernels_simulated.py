"""A GPU of one core: the kernels' sources for Metal and CUDA, compiled by the host's C++ compiler, each lane a fiber.

The lanes of a threadgroup run in turn, from one exchange of numbers between neighbours to the next, which is how a
simdgroup (a warp) runs them. What the languages add to C++, and the kernels use, is defined here in a few lines.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.kernels import flash_gpu, flash_mma, flash_tiles, flash_wgmma, host

FIBERS = r"""
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

static struct { int x, y, z; } worker_at, group_at;
static const int MOST = 256;
static ucontext_t lanes[MOST], home;
static float slots[2][MOST];
static int exchanges[MOST], here, count;
static void (*work)();

static float exchanged(float x, int step) {
    const int me = here, side = exchanges[me]++ & 1;
    slots[side][me] = x;
    here = (me + 1) % count;
    swapcontext(&lanes[me], &lanes[here]);
    here = worker_at.x = me;
    return slots[side][me ^ step];
}

static void enter(int lane) {
    here = worker_at.x = lane;
    work();
}

static void run_grid(void (*each)(), int blocks, int groups, int splits, int threads) {
    std::vector<char> stacks(threads << 18);
    work = each, count = threads;
    for (int most = groups * splits, n = 0; n < most; n++)
        for (group_at.y = n % groups, group_at.z = n / groups, group_at.x = 0; group_at.x < blocks; group_at.x++) {
            for (int lane = 0; lane < threads; lane++) {
                getcontext(&lanes[lane]);
                lanes[lane].uc_stack.ss_sp = stacks.data() + ((size_t)lane << 18);
                lanes[lane].uc_stack.ss_size = 1 << 18;
                lanes[lane].uc_link = lane + 1 < threads ? &lanes[lane + 1] : &home;
                makecontext(&lanes[lane], (void (*)())enter, 1, lane);
                exchanges[lane] = 0;
            }
            swapcontext(&home, &lanes[0]);
        }
}
"""
SHIMS = {
    "metal": r"""
#define thread
#define thread_position_in_threadgroup worker_at
#define threadgroup_position_in_grid group_at
typedef unsigned short ushort;
namespace metal { namespace precise { using std::exp; using std::tanh; } }
static float simd_shuffle_xor(float x, ushort step) { return exchanged(x, step); }
""",
    "cuda": r"""
#define __device__
#define threadIdx worker_at
#define blockIdx group_at
#define __shared__ static
static float __shfl_xor_sync(unsigned, float x, int step) { return exchanged(x, step); }
static inline void __syncthreads() { exchanged(0, 0); }
""",
}
# one warp's product of 16 x 16 and 16 x 8 halves, over its lanes as the figures of m16n8k16 in the PTX manual have it
CORES = r"""
#define SIMULATED
static uint32_t parts[MOST][6];
static float half_at(uint32_t bits, int place) {
    const uint16_t one = bits >> (16 * place);
    _Float16 number;
    std::memcpy(&number, &one, sizeof number);
    return number;
}
template <bool BRAIN>
static void multiply(float *c, const unsigned *a, const unsigned *b) {
    const int me = here;
    std::memcpy(parts[me], a, 16), std::memcpy(parts[me] + 4, b, 8);
    exchanged(0, 0);
    const int warp = me / 32 * 32;
    for (int e = 0; e < 4; e++) {
        const int row = me % 32 / 4 + e / 2 * 8, column = me % 4 * 2 + e % 2;
        for (int k = 0; k < 16; k++)
            c[e] += half_at(parts[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2)
                * half_at(parts[warp + column * 4 + k % 8 / 2][4 + k / 8], k % 2);
    }
    exchanged(0, 0);
}
// the figures of ldmatrix there
static const uint16_t *given_rows[MOST];
static inline void loaded(unsigned *b, const void *row, bool turned) {
    const int me = here, warp = me / 32 * 32, lane = me % 32;
    given_rows[me] = (const uint16_t *)row;
    exchanged(0, 0);
    for (int m = 0; m < 4; m++) {
        const uint16_t *const *at = given_rows + warp + m * 8;
        const unsigned low = turned ? at[lane % 4 * 2][lane / 4] : at[lane / 4][lane % 4 * 2];
        const unsigned high = turned ? at[lane % 4 * 2 + 1][lane / 4] : at[lane / 4][lane % 4 * 2 + 1];
        b[m] = low | high << 16;
    }
    exchanged(0, 0);
}
static inline void four(unsigned *b, const void *row) { loaded(b, row, false); }
static inline void four_turned(unsigned *b, const void *row) { loaded(b, row, true); }
template <int BYTES>
static inline void fetch(void *to, const void *from, bool there) {
    if ((size_t)to % BYTES || (there && (size_t)from % BYTES))
        std::abort();
    there ? std::memcpy(to, from, BYTES) : std::memset(to, 0, BYTES);
}
#define FETCHED
static inline float power_of_2(float x) { return std::exp2(x); }
template <typename T, bool BRAIN>
static unsigned rounded(float first, float second) {
    const T two[2] = {T(first), T(second)};
    unsigned both;
    std::memcpy(&both, two, sizeof both);
    return both;
}
#define DIVIDED(x, y) ((x) / (y))
"""
# a warpgroup's product of 64 x 16 numbers and 16 x N in shared memory, where the figures of wgmma in the PTX manual
# have them: rows of 128 bytes whose chunks of sixteen change places with the row
GROUPS = r"""
#define ROOM(bytes) alignas(1024) static char room[bytes]; whole_room = room
static char *whole_room;
#define NEAR(pointer) unsigned((const char *)(pointer) - whole_room)
#define SETTLED
#define PREPARED
#define STARTED exchanged(0, 0)
#define ALL_BUT(count)
template <int COUNT> static void held(float (*)[4]) {}
static bool __any_sync(unsigned, bool x) {
    float y = x;
    for (int step = 1; step < 32; step *= 2)
        y = std::fmax(y, exchanged(y, step));
    return y > 0;
}
static uint32_t weights[MOST][4];
static float near_half(unsigned at) {
    uint16_t bits;
    std::memcpy(&bits, whole_room + (at ^ (at >> 7 & 7) << 4), 2);
    return half_at(bits, 0);
}
static unsigned field(unsigned long long descriptor, int from) { return unsigned(descriptor >> from & 0x3fff) << 4; }
template <int N, typename A>
static void group_product(float *c, A a, unsigned long long b, int add, bool turned) {
    if (field(b, 32) != 1024 || b >> 62 != 1)
        std::abort();
    const int lane = here % 32, top = here % 128 / 32 * 16 + lane / 4;
    for (int e = 0; e < N / 2; e++) {
        const int row = top + e % 4 / 2 * 8, column = e / 4 * 8 + lane % 4 * 2 + e % 2;
        float x = add ? c[e] : 0.0f;
        for (int k = 0; k < 16; k++) {
            const unsigned straight = column / 8 * 1024 + column % 8 * 128 + k * 2;
            const unsigned across = column / 64 * field(b, 16) + k / 8 * 1024 + k % 8 * 128 + column % 64 * 2;
            x += a(row, k) * near_half(field(b, 0) + (turned ? across : straight));
        }
        c[e] = x;
    }
}
#define score_product(c, a, b, add)                                                                            \
    group_product<TILE>(c, [from = field(a, 0)](int row, int k) {                                              \
        return near_half(from + row / 8 * 1024 + row % 8 * 128 + k * 2); }, b, add, false)
#define value_product(c, a, b, add)                                                                            \
    (std::memcpy(weights[here], a, 16), exchanged(0, 0),                                                       \
        group_product<COLUMNS * 8>(c, [warp = here / 128 * 128](int row, int k) {                              \
            const uint32_t *of = weights[warp + row / 16 * 32 + row % 8 * 4 + k % 8 / 2];                      \
            return half_at(of[row % 16 / 8 + k / 8 * 2], k % 2); }, b, add, true), (void)exchanged(0, 0))
"""
HEADERS = {
    "metal": flash_gpu.METAL.replace("#include <metal_stdlib>", ""),
    "cuda": flash_gpu.CUDA,
}
NAMES = {mx.float32: "float", mx.float16: "_Float16", mx.int32: "int", mx.bool_: "uint8_t"}
# every warning but those about the GPUs' own pragmas is an error
FLAGS = ("-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-pass-failed")
ARRAYS = ("in_mask", "in_sinks", "in_slopes")


def has_halves(compiler: str) -> bool:
    """Whether the compiler has a type for float16."""
    command = [compiler, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input=b"_Float16 x;", capture_output=True, check=False).returncode == 0


# heads after rows, as models have them before they are transposed; numbers of a head apart; many cells one number
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: x,
    "rows first": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "turned": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
}
Constants = tuple[tuple[str, int], ...]


def kernel(where: str, folder: Path, layout: str = "dense") -> Callable[..., Callable[..., Any]]:
    """What can stand for `flash_gpu.kernel`: kernels for the GPU `where`, compiled into `folder`.

    Arrays of four axes lie in memory as the `layout` has it, where the kernel reads them so.
    """

    def made(
        asked: str, mask: int, sinks: bool, slopes: bool, types: Sequence[mx.Dtype], constants: Constants
    ) -> Callable[..., Any]:
        text = asked if asked in ("parts", "merge", "groups") else where
        order = layout if text in ("cores", "parts", "groups") else "dense"
        return _launcher(text, (mask, sinks, slopes), dict(constants), folder, order)

    return made


def _launcher(
    where: str, given: tuple[int, bool, bool], constants: dict[str, Any], folder: Path, layout: str
) -> Callable[..., list[mx.array]]:
    def run(
        inputs: Sequence[mx.array],
        template: Sequence[tuple[str, Any]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        arrays = [LAYOUTS[layout](np.array(each)) if each.ndim == 4 else np.array(each) for each in inputs]
        strides = [np.array(each.strides, np.int64) // each.itemsize for each in arrays]
        numpy = {mx.float32: np.float32, mx.float16: np.float16}
        outs = [np.full(s, np.nan, numpy[t]) for s, t in zip(output_shapes, output_dtypes, strict=True)]
        types = [NAMES[each.dtype] for each in inputs]
        library = ctypes.CDLL(str(built(where, given, types, constants | dict(template), folder)))
        everything = (*arrays, *outs, *strides)
        pointers = (ctypes.c_void_p * len(everything))(*(each.ctypes.data for each in everything))
        library.run(pointers, grid[0] // threadgroup[0], grid[1], grid[2], threadgroup[0])
        return [mx.array(out) for out in outs]

    return run


def built(
    where: str, given: tuple[int, bool, bool], types: Sequence[str], template: dict[str, Any], folder: Path
) -> Path:
    """The shared library for a choice of arrays and template arguments."""
    text = source(where, given, types, template)
    path = folder / f"{where}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        code, found = path.with_suffix(".cpp"), host.compiler()
        assert found is not None
        code.write_text(text)
        command = [found, *FLAGS, str(code), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return path


def source(where: str, given: tuple[int, bool, bool], types: Sequence[str], template: dict[str, Any]) -> str:
    """The kernel as MLX puts it together and what runs it over a grid."""
    names = ["in_q", "in_k", "in_v", "sizes", "numbers", *itertools.compress(ARRAYS, given)]
    outputs = ["given"]
    half = NAMES[template["T"]]
    if where == "merge":
        names, body = ["parts", "marks", "sizes", "numbers"], flash_tiles.MERGE
    elif where == "groups":
        body = flash_tiles.completed(flash_wgmma.BODY, *given, True)
    elif where in ("cores", "parts"):
        body = flash_tiles.completed(flash_mma.BODY, *given, where == "cores")
        outputs += ["marks"] if where == "parts" else []
    else:
        body = flash_gpu.source(where, bool(given[0]), *given[1:])
    results = ["float", "float"] if where == "parts" else [half]
    constants = [
        f"constexpr {'bool' if name.startswith('HAS') else 'int'} {name} = {int(value)};"
        for name, value in template.items()
        if name != "T"
    ]
    count = len(names) + len(outputs)
    bound = [
        f"auto {name} = (const {type} *)pointers[{n}];" for n, (type, name) in enumerate(zip(types, names, strict=True))
    ]
    bound += [
        f"auto {name} = ({type} *)pointers[{len(names) + n}];"
        for n, (type, name) in enumerate(zip(results, outputs, strict=True))
    ]
    bound += [
        f"auto {name}_strides = (const int64_t *)pointers[{count + n}];"
        for n, name in enumerate(names)
        if f"{name}_strides" in body
    ]
    lines = [
        FIBERS,
        SHIMS["metal" if where == "metal" else "cuda"],
        "" if where in HEADERS else CORES,
        GROUPS if where == "groups" else "",
        flash_wgmma.HEADER if where == "groups" else HEADERS.get(where, flash_mma.HEADER),
        f"typedef {half} T;",
        *constants,
        "static void **pointers;",
        "static void attention() {",
        *bound,
        body,
        "}",
        'extern "C" void run(void **given, int blocks, int groups, int splits, int threads) {',
        "pointers = given;",
        "run_grid(attention, blocks, groups, splits, threads);",
        "}",
    ]
    return "\n".join(lines)
