"""The body of our own attention kernel, one source for three machines: a host's C++, CUDA and Metal.

The body is what one *lane* does, for one row of queries; a prelude says what a lane is. On a GPU it is a thread, or
`PARTS` neighbouring threads that share out the head's numbers. On a host a lane is one element of a vector register:
the same lines are compiled with `REAL` as a vector of floats, so that arithmetic, comparisons and `?:` go element by
element. Keys and values are then single numbers that all lanes share.

One pass over keys and values, `TILE` keys at a time, with a running maximum and sum for each row (online softmax), all
in float32. Rows are those of all query heads of one head of keys, one head after another: row r is query r % QUERIES of
the group's head r / QUERIES. A row that sees no key, and has no sink, gives EMPTY (zero, or no number); what a boolean
mask hides scores FILL, minus infinity or a number so low that it counts only among its like.

What a prelude defines: REAL and WHOLE (a lane's float and int), FIRST and LANE (the item's first row, the lane's place
in it), BLOCK (rows of an item), OWN(i) (which number of a head a thread's i-th is), EXP, TANH, TAKE, PUT, SPLAT,
SUMMED, TILE_START, KEY_AT, VALUE_AT (`FETCH` numbers each), MASK_START, KEPT_AT and BIAS_AT (the mask at a key, from
`cell` on), the sizes, and the switches as constants or variables: MASK (0 none, 1 boolean, 2 additive), SINKS, SLOPES
(FOLDED: of distances without a sign), CAPPED.
"""

BODY = r"""
    const int rows = GROUPS * QUERIES;
    const int offset = KEYS - QUERIES;
    const WHOLE row = FIRST + LANE;
    const WHOLE safe = row < rows ? row : WHOLE_SPLAT(rows - 1);
    const WHOLE place = safe % QUERIES;
    const WHOLE head = safe / QUERIES;
    const WHOLE reach = place + offset;
    const WHOLE cell = head * MASK_HEAD + place * MASK_ROW;
    (void)cell;

    // the first and last query of the item bound the keys that any of its rows can see
    const int last = (FIRST + BLOCK < rows ? FIRST + BLOCK : rows) - 1;
    const bool one = FIRST / QUERIES == last / QUERIES;
    const int low = one ? FIRST % QUERIES : 0;
    const int high = one ? last % QUERIES : QUERIES - 1;
    int start = low + offset - BEHIND;
    start = start < 0 ? 0 : start - start % TILE;
    int stop = high + offset + AHEAD + 1;
    stop = stop < KEYS ? stop : KEYS;

    REAL query[OWN_DEPTH];
    REAL sum[OWN_WIDTH];
    UNROLL_DEPTH
    for (int i = 0; i < DEPTH_HERE; i++)
        query[i] = OWN(i) < DEPTH ? TAKE(q, safe * DEPTH + OWN(i)) * SCALE : SPLAT(0.0f);
    UNROLL_WIDTH
    for (int i = 0; i < WIDTH_HERE; i++)
        sum[i] = SPLAT(0.0f);
    REAL most = SPLAT(LOWEST);
    REAL total = SPLAT(0.0f);
    if (SINKS) {
        most = TAKE(sinks, head);
        total = SPLAT(1.0f);
    }
    REAL slope = SPLAT(0.0f);
    if (SLOPES)
        slope = TAKE(slopes, head);

    for (int tile = start; tile < stop; tile += TILE) {
        TILE_START
        REAL score[TILE];
        for (int some = 0; some < TILE; some += KEYS_AT_ONCE) {
            REAL product[KEYS_AT_ONCE];
            UNROLL
            for (int c = 0; c < KEYS_AT_ONCE; c++)
                product[c] = SPLAT(0.0f);
            UNROLL_DEPTH
            for (int i = 0; i < DEPTH_HERE; i += FETCH) {
                UNROLL
                for (int c = 0; c < KEYS_AT_ONCE; c++) {
                    KEY_AT(tile + some, c, i)
                    UNROLL
                    for (int e = 0; e < FETCH; e++)
                        product[c] += query[i + e] * number[e];
                }
            }
            UNROLL
            for (int c = 0; c < KEYS_AT_ONCE; c++)
                score[some + c] = SUMMED(product[c]);
        }
        if (CAPPED)
            UNROLL_TILE
            for (int c = 0; c < TILE; c++)
                score[c] = TANH(score[c] * (1.0f / CAP)) * CAP;
        if (SLOPES)
            UNROLL_TILE
            for (int c = 0; c < TILE; c++) {
                const WHOLE away = tile + c - reach;
                score[c] += slope * AS_REAL(FOLDED ? (away < 0 ? -away : away) : away);
            }
        if (MASK != 0) {
            MASK_START
            UNROLL_TILE
            for (int c = 0; c < TILE; c++)
                if (MASK == 1)
                    score[c] = KEPT_AT(tile + c) ? score[c] : SPLAT(FILL);
                else
                    score[c] += BIAS_AT(tile + c);
        }
        // a tile at an edge: some rows do not see all of it
        if (tile + TILE > low + offset + AHEAD + 1 || tile < high + offset - BEHIND || tile + TILE > KEYS)
            UNROLL_TILE
            for (int c = 0; c < TILE; c++) {
                const int key = tile + c;
                const bool there = key < KEYS;
                score[c] = (key <= reach + AHEAD) & (key >= reach - BEHIND) & (there ? YES : NO)
                    ? score[c] : SPLAT(HIDDEN);
            }

        REAL top = most;
        UNROLL
        for (int c = 0; c < TILE; c++)
            top = score[c] > top ? score[c] : top;
        const REAL fade = EXP(most - top);
        REAL weights = SPLAT(0.0f);
        UNROLL
        for (int c = 0; c < TILE; c++) {
            score[c] = EXP(score[c] - top);
            weights += score[c];
        }
        total = total * fade + weights;
        most = top;

        const int there = KEYS - tile < TILE ? KEYS - tile : TILE;
        (void)there;
        UNROLL_WIDTH
        for (int i = 0; i < WIDTH_HERE; i += VALUES_AT_ONCE) {
            REAL block[VALUES_AT_ONCE];
            UNROLL
            for (int e = 0; e < VALUES_AT_ONCE; e++)
                block[e] = sum[i + e] * fade;
            UNROLL_TILE
            for (int c = 0; c < TILE_HERE; c++) {
                VALUE_AT(tile + c, i)
                UNROLL
                for (int e = 0; e < VALUES_AT_ONCE; e++)
                    block[e] += score[c] * number[e];
            }
            UNROLL
            for (int e = 0; e < VALUES_AT_ONCE; e++)
                sum[i + e] = block[e];
        }
    }

    // no key was seen: what EMPTY says; a sum that is no number stays none
    const REAL share = total > 0.0f ? 1.0f / total : total + EMPTY;
    UNROLL_WIDTH
    for (int i = 0; i < WIDTH_HERE; i++)
        if (OWN(i) < WIDTH)
            PUT(out, safe * WIDTH + OWN(i), row < rows, sum[i] * share);
"""
