"""float16: keys (size, CACHE_BLOCK), so that one vector holds 16 tokens and no score needs a sum across lanes; values
(CACHE_BLOCK, size).
"""

from numatp.kernels.compile import device
from numatp.kernels.layout import CACHE_BLOCK, PANEL_UNIT_BYTES, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.pairs import store_pair
from numatp.kernels.rows import FEW, add_outer_apart, load_rows, num_rows, scale_rows, store_rows
from numatp.kernels.scratch import corrections_of, sums_of
from numatp.kernels.simd import load_f16x16, load_f32, offset, prefetch, splat_f32, store_f16, store_f32x16, widen


@device
def store_key(keys, token, size, x):
    for d in range(size):
        store_f16(keys, d * CACHE_BLOCK + token, load_f32(x, d))


@device
def store_value(values, token, size, x):
    for d in range(size):
        store_f16(values, token * size + d, load_f32(x, d))


@device
def prepare(state, size, room):
    """Queries are taken as they are."""


@device
def prefetch_next(there, d):
    """The lines of one d: CACHE_BLOCK float16 of either."""
    for line in range(0, 2 * CACHE_BLOCK, 64):
        prefetch(there, d * 2 * CACHE_BLOCK + line)


@device
def score(zero, scratch, state, keys, size, next_keys):
    if num_rows(zero) > FEW:
        score_group(zero, scratch, state, keys, size, next_keys)
    else:
        score_few(zero, scratch, state, keys, size, next_keys)


@device
def score_group(zero, scores, queries, keys, size, next_keys):
    """As many accumulators as registers hold."""
    for part in range(0, CACHE_BLOCK, 16):
        s = zero
        for d in range(size):
            if part == 0:
                prefetch_next(next_keys, d)
            s = add_outer_apart(s, widen(load_f16x16(keys, d * CACHE_BLOCK + part)), offset(queries, d * 4), QUERY_PITCH)
        store_rows(scores, SCORES_PITCH, part, s)


@device
def score_few(zero, scores, queries, keys, size, next_keys):
    """Four vectors of tokens at once, so that sums do not wait for each other."""
    s0, s1, s2, s3 = zero, zero, zero, zero
    for d in range(size):
        prefetch_next(next_keys, d)
        q = offset(queries, d * 4)
        s0 = add_outer_apart(s0, widen(load_f16x16(keys, d * CACHE_BLOCK)), q, QUERY_PITCH)
        s1 = add_outer_apart(s1, widen(load_f16x16(keys, d * CACHE_BLOCK + 16)), q, QUERY_PITCH)
        s2 = add_outer_apart(s2, widen(load_f16x16(keys, d * CACHE_BLOCK + 32)), q, QUERY_PITCH)
        s3 = add_outer_apart(s3, widen(load_f16x16(keys, d * CACHE_BLOCK + 48)), q, QUERY_PITCH)
    store_rows(scores, SCORES_PITCH, 0, s0)
    store_rows(scores, SCORES_PITCH, 16, s1)
    store_rows(scores, SCORES_PITCH, 32, s2)
    store_rows(scores, SCORES_PITCH, 48, s3)


@device
def add_values(zero, scratch, state, values, size, count, tokens, next_values):
    sums, corrections, first = sums_of(state), corrections_of(scratch), 0
    if num_rows(zero) <= FEW:
        add_columns_by_four(zero, scratch, corrections, sums, values, size, tokens, next_values)
        first = size // 64 * 64
    add_columns(zero, first, scratch, corrections, sums, values, size, tokens, next_values)


@device
def add_columns(zero, first, scores, corrections, sums, values, size, tokens, next_values):
    """add_values for the values of a head from the first-th on, 16 at once."""
    for d in range(first, size, 16):
        for i in range(16):
            prefetch_next(next_values, d + i)
        a = scale_rows(load_rows(sums, QUERY_PITCH, d, zero), corrections)
        for t in range(tokens):
            a = add_outer_apart(a, load_value(values, size, t, d), offset(scores, t * 4), SCORES_PITCH)
        store_rows(sums, QUERY_PITCH, d, a)


@device
def add_columns_by_four(zero, scores, corrections, sums, values, size, tokens, next_values):
    """add_values for whole 64s of values: four vectors at once, which share a token's weight and do not wait for each other."""
    for d in range(0, size // 64 * 64, 64):
        a0 = scale_rows(load_rows(sums, QUERY_PITCH, d, zero), corrections)
        a1 = scale_rows(load_rows(sums, QUERY_PITCH, d + 16, zero), corrections)
        a2 = scale_rows(load_rows(sums, QUERY_PITCH, d + 32, zero), corrections)
        a3 = scale_rows(load_rows(sums, QUERY_PITCH, d + 48, zero), corrections)
        for t in range(tokens):
            prefetch_next(next_values, d // 64 * tokens + t)
            w = offset(scores, t * 4)
            a0 = add_outer_apart(a0, load_value(values, size, t, d), w, SCORES_PITCH)
            a1 = add_outer_apart(a1, load_value(values, size, t, d + 16), w, SCORES_PITCH)
            a2 = add_outer_apart(a2, load_value(values, size, t, d + 32), w, SCORES_PITCH)
            a3 = add_outer_apart(a3, load_value(values, size, t, d + 48), w, SCORES_PITCH)
        store_rows(sums, QUERY_PITCH, d, a0)
        store_rows(sums, QUERY_PITCH, d + 16, a1)
        store_rows(sums, QUERY_PITCH, d + 32, a2)
        store_rows(sums, QUERY_PITCH, d + 48, a3)


@device
def load_columns(x, pitch, index, d, size):
    """16 numbers of the d-th row of x, rows `pitch` numbers long, from the index-th on; zeros where there is no such row."""
    return widen(load_f16x16(x, d * pitch + index)) if d < size else splat_f32(0)


@device
def expand_keys(keys, size, panels, apart):
    """A block's as panels of BF16 (kernels/tiled_attention.py), one for each 16 tokens, `apart` bytes apart."""
    for unit in range((size + 31) // 32):
        for i in range(16):
            d, out = unit * 32 + i, offset(panels, unit * PANEL_UNIT_BYTES + i * 64)
            for tile in range(CACHE_BLOCK // 16):
                low = load_columns(keys, CACHE_BLOCK, tile * 16, d, size)
                high = load_columns(keys, CACHE_BLOCK, tile * 16, d + 16, size)
                store_pair(offset(out, tile * apart), low, high)


@device
def expand_values(values, size, tokens, panels, apart):
    """The same, one panel for each 16 values, of the block's first `tokens`: the others may be anything, and become zeros."""
    for unit in range(CACHE_BLOCK // 32):
        for i in range(16):
            t, out = unit * 32 + i, offset(panels, unit * PANEL_UNIT_BYTES + i * 64)
            for tile in range(size // 16):
                low = load_columns(values, size, tile * 16, t, tokens)
                high = load_columns(values, size, tile * 16, t + 16, tokens)
                store_pair(offset(out, tile * apart), low, high)


@device
def unpack_keys(keys, size, out):
    """A block's as float32 (size, CACHE_BLOCK)."""
    for i in range(0, size * CACHE_BLOCK, 16):
        store_f32x16(out, i, widen(load_f16x16(keys, i)))


@device
def load_value(values, size, token, d):
    return widen(load_f16x16(values, token * size + d))
