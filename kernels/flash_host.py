"""The host's prelude for the body: a lane is an element of a vector register, threads share out the items."""

from fuser.kernels.flash_body import BODY

HOST = (
    r"""
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#define LANES 16
#define KEYS_AT_ONCE 16
#define VALUES_AT_ONCE 16
#elif defined(__AVX__)
#define LANES 8
#define KEYS_AT_ONCE 8
#define VALUES_AT_ONCE 8
#else
#define LANES 4
#define KEYS_AT_ONCE 8
#define VALUES_AT_ONCE 8
#endif
#define TILE 64
#define WIDEST 512

typedef float REAL __attribute__((vector_size(4 * LANES)));
typedef int32_t WHOLE __attribute__((vector_size(4 * LANES)));

struct Problem {
    const float *q, *k, *v, *bias, *sinks, *slopes;
    const uint8_t *keep;
    float *out;
    int64_t batch, heads, groups, queries, keys, depth, width, padded;
    int64_t mask_batch, mask_heads, mask_head, mask_row, mask_key;
    int64_t mask, ahead, behind, folded;
    float scale, cap, fill, empty;
};

static inline REAL splat(float x) { return REAL{} + x; }
static inline WHOLE whole(int x) { return WHOLE{} + x; }

static inline REAL take(const float *base, WHOLE index) {
    REAL found;
    for (int l = 0; l < LANES; l++)
        found[l] = base[index[l]];
    return found;
}

// a tile of a mask, turned so that the lanes of a key lie together; `same`: all lanes read one row
template <typename From, typename To, typename Lanes>
static inline void turn(const From *base, WHOLE cell, int64_t step, int count, bool same, To one, Lanes *room) {
    To *place = reinterpret_cast<To *>(room);
    if (same)
        for (int c = 0; c < count; c++)
            room[c] = Lanes{} + (To)(base[cell[0] + c * step] * one);
    else
        for (int l = 0; l < LANES; l++)
            for (int c = 0; c < count; c++)
                place[c * LANES + l] = (To)(base[cell[l] + c * step] * one);
    for (int c = count; c < TILE; c++)
        room[c] = Lanes{};
}

static inline void put(float *base, WHOLE index, WHOLE there, REAL value) {
    for (int l = 0; l < LANES; l++)
        if (there[l])
            base[index[l]] = value[l];
}

// e to the power of x: 2^n e^r with |r| <= ln(2) / 2, a polynomial for e^r, n added to the exponent's bits
static inline REAL exponential(REAL x) {
    const REAL lifted = x * 1.44269504088896341f + 12582912.0f;
    WHOLE bits;
    std::memcpy(&bits, &lifted, sizeof bits);
    const REAL n = lifted - 12582912.0f;
    REAL r = x - n * 0.693145751953125f;
    r = r - n * 1.42860682030941723e-6f;
    REAL p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const WHOLE raised = (bits + 127) << 23;
    REAL power;
    std::memcpy(&power, &raised, sizeof power);
    return x < -87.0f ? splat(0.0f) : p * power;
}

// near zero a continued fraction, elsewhere 1 - 2 / (e^2x + 1)
static inline REAL tangent(REAL x) {
    const REAL size = x < 0.0f ? -x : x;
    const REAL square = x * x;
    const REAL near = x / (1.0f + square / (3.0f + square / (5.0f + square / (7.0f + square * (1.0f / 9)))));
    const REAL power = exponential(size < 20.0f ? size * 2.0f : splat(40.0f));
    const REAL far = 1.0f - 2.0f / (power + 1.0f);
    const REAL found = size < 0.6f ? near : (x < 0.0f ? -far : far);
    return x == x ? found : x;
}

#define FIRST first
#define BLOCK LANES
#define LANE lane
#define OWN(i) (i)
#define OWN_DEPTH WIDEST
#define OWN_WIDTH WIDEST
#define DEPTH_HERE DEPTH
#define WIDTH_HERE padded
#define TILE_HERE there
#define FETCH 1
#define SPLAT splat
#define WHOLE_SPLAT whole
#define AS_REAL(x) __builtin_convertvector((x), REAL)
#define EXP exponential
#define TANH tangent
#define TAKE take
#define PUT put
#define SUMMED(x) (x)
#define YES whole(-1)
#define NO whole(0)
#define LOWEST -3.4028234663852886e38f
#define HIDDEN -__builtin_inff()
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_DEPTH
#define UNROLL_WIDTH
#define UNROLL_TILE
// keys lie packed, KEYS_AT_ONCE of them number by number: all of them from before, or one tile just now
#define TILE_START \
    const float *held = k + (int64_t)tile * DEPTH; \
    if (!packed) { \
        pack(held, room, std::min(TILE, keys - tile), depth); \
        held = room; \
    }
// only one of the two is filled, and read
#define MASK_START \
    const int64_t step = problem.mask_key; \
    const int filled = std::min(TILE, keys - tile); \
    if (MASK == 1) \
        turn(keep + tile * step, cell, step, filled, same, (int32_t)-1, open); \
    else \
        turn(bias + tile * step, cell, step, filled, same, 1.0f, shift);
#define KEPT_AT(key) (open[(key) - tile] != 0)
#define BIAS_AT(key) shift[(key) - tile]
#define KEY_AT(key, c, i) const float *number = held + ((key) - tile) * DEPTH + (i) * KEYS_AT_ONCE + (c);
#define VALUE_AT(key, i) const float *number = v + (int64_t)(key) * padded + (i);
#define GROUPS groups
#define QUERIES queries
#define KEYS keys
#define DEPTH depth
#define WIDTH width
#define SCALE problem.scale
#define CAP problem.cap
#define FILL problem.fill
#define EMPTY problem.empty
#define CAPPED (problem.cap > 0.0f)
#define SINKS (problem.sinks != nullptr)
#define SLOPES (problem.slopes != nullptr)
#define MASK problem.mask
#define MASK_HEAD (int)problem.mask_head
#define MASK_ROW (int)problem.mask_row
#define FOLDED (problem.folded != 0)
#define AHEAD ahead
#define BEHIND behind

static void pack(const float *source, float *target, int64_t keys, int64_t depth) {
    for (int64_t first = 0; first < keys; first += KEYS_AT_ONCE)
        for (int64_t c = 0; c < std::min<int64_t>(KEYS_AT_ONCE, keys - first); c++)
            for (int64_t d = 0; d < depth; d++)
                target[first * depth + d * KEYS_AT_ONCE + c] = source[(first + c) * depth + d];
}

static void attend_rows(const Problem &problem, const float *packed, const float *values, int group, int first) {
    const int groups = problem.groups, queries = problem.queries, keys = problem.keys;
    const int depth = problem.depth, width = problem.width, padded = problem.padded;
    const int ahead = problem.ahead, behind = problem.behind;
    const int64_t filled = (keys + TILE - 1) / TILE * TILE;
    const int64_t batch = group / problem.heads, heads = group % problem.heads;
    const float *q = problem.q + (int64_t)group * groups * queries * depth;
    const float *k = packed ? packed + group * filled * depth : problem.k + (int64_t)group * keys * depth;
    float room[TILE * WIDEST];
    const float *v = values + (int64_t)group * keys * padded;
    float *out = problem.out + (int64_t)group * groups * queries * width;
    const int64_t corner = batch * problem.mask_batch + heads * problem.mask_heads;
    const uint8_t *keep = problem.keep ? problem.keep + corner : nullptr;
    const float *bias = problem.bias ? problem.bias + corner : nullptr;
    const float *sinks = problem.sinks ? problem.sinks + heads * groups : nullptr;
    const float *slopes = problem.slopes ? problem.slopes + heads * groups : nullptr;
    const bool same = problem.mask_row == 0 && (problem.mask_head == 0 || groups == 1);
    WHOLE open[TILE];
    REAL shift[TILE];
    WHOLE lane;
    for (int l = 0; l < LANES; l++)
        lane[l] = l;
"""
    + BODY
    + r"""
}

// all of `first`, then all of `second`, shared out over threads that are started once
template <typename First, typename Second>
static void shared_out(int64_t firsts, First first, int64_t seconds, Second second, int threads) {
    std::atomic<int64_t> next{0}, later{0};
    std::atomic<int> waiting{(int)std::max<int64_t>(1, std::min<int64_t>(threads, seconds))};
    const int others = waiting - 1;
    auto work = [&] {
        for (int64_t i = next++; i < firsts; i = next++)
            first(i);
        for (waiting--; firsts > 0 && waiting > 0;)
            std::this_thread::yield();
        for (int64_t i = later++; i < seconds; i = later++)
            second(i);
    };
    std::vector<std::thread> team;
    for (int t = 0; t < others; t++)
        try {
            team.emplace_back(work);
        } catch (const std::system_error &) {
            waiting--;
        }
    work();
    for (auto &each : team)
        each.join();
}

extern "C" int64_t problem_size() { return sizeof(Problem); }

// attention over [batch, heads, groups, queries, depth], all arrays dense in that order
extern "C" void attend(Problem *given, int threads) {
    Problem problem = *given;
    const int64_t keys = problem.keys, depth = problem.depth, width = problem.width;
    const int64_t all = problem.batch * problem.heads, filled = (keys + TILE - 1) / TILE * TILE;
    problem.padded = (width + VALUES_AT_ONCE - 1) / VALUES_AT_ONCE * VALUES_AT_ONCE;
    const bool pad = problem.padded != width;
    const int64_t blocks = (problem.groups * problem.queries + LANES - 1) / LANES;
    // for a few rows (decoding) keys are packed as they are met
    const bool before = blocks > 2;
    std::vector<float> packed(before ? all * filled * depth : 0), room(pad ? all * keys * problem.padded : 0);
    const float *values = pad ? room.data() : problem.v;
    const float *ready = before ? packed.data() : nullptr;
    auto prepare = [&](int64_t group) {
        if (before)
            pack(problem.k + group * keys * depth, packed.data() + group * filled * depth, keys, depth);
        if (pad)
            for (int64_t key = 0; key < keys; key++)
                std::copy_n(problem.v + (group * keys + key) * width, width,
                            room.data() + (group * keys + key) * problem.padded);
    };
    auto attend = [&](int64_t item) {
        // the last rows see most under a causal mask: they go first, so that threads end together
        attend_rows(problem, ready, values, item / blocks, (blocks - 1 - item % blocks) * LANES);
    };
    shared_out(before || pad ? all : 0, prepare, all * blocks, attend, threads);
}
"""
)
