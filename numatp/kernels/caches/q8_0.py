"""Q8_0: int8 with a float16 scale for every 32 values of a token, as llama.cpp's type of that name.

Keys lie in tiles of 16 tokens: per 32 values 8 vectors of q + 128, as in a Q8_0 matrix whose rows are the tokens
(numatp/quants/q8_0.py); behind all of a tile's vectors 16 scales for each 32 values, in whole cache lines. So scores are integer
dot products with queries rounded to 8 bits. Values lie as columns of such a matrix whose rows are the values of a head: tiles of
16 values, per 32 tokens 8 vectors of int8; then scales (size / 32, CACHE_BLOCK). The softmax's weights are multiplied with these
and rounded to 8 bits, with one scale for 32 tokens.
"""

from numatp.kernels.activation import BLOCK, SMALLEST_SCALE, quantize_row, scale_of, scales, starts, store_block
from numatp.kernels.compile import device
from numatp.kernels.jit import float32
from numatp.kernels.layout import CACHE_BLOCK, KEY_TILE, PANEL_UNIT_BYTES, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.pairs import store_columns, store_scaled_columns, store_scaled_rows
from numatp.kernels.rows import add_dot_biased, add_weighted, block, load_rows, num_rows, scale_rows, store_rows
from numatp.kernels.scratch import corrections_of, factors_of, prepared_of, sums_of
from numatp.kernels.simd import (
    abs_f32,
    keep_lanes,
    largest,
    largest_of_two,
    load_f16x16,
    load_f32x16,
    load_i8x64,
    load_u8,
    max_f32x16,
    offset,
    prefetch,
    round_to_i32,
    splat_f32,
    store_f16,
    store_f32,
    store_i32_as_i8,
    store_u8,
    widen,
)

ZERO = 128  # added to keys: the dot product takes unsigned bytes on one side
UNIT_BYTES = 8 * 64 + 32  # of keys in 16 tokens x 32 values, and of values as well
TILE_BYTES = 2 * 512  # of 16 values of a block, without scales


@device
def tile_bytes(size):
    return (size // BLOCK * UNIT_BYTES + 63) // 64 * 64


@device
def store_key(keys, token, size, x):
    tile, row = offset(keys, token // KEY_TILE * tile_bytes(size)), token % KEY_TILE
    for unit in range(size // BLOCK):
        store_f16(offset(tile, size // BLOCK * 512 + unit * 32), row, quantize_in_place(x, unit))
        for i in range(BLOCK):
            store_u8(tile, unit * 512 + i // 4 * 64 + row * 4 + i % 4, load_u8(x, unit * BLOCK + i) ^ ZERO)


@device
def store_value(values, token, size, x):
    place = token // BLOCK * 512 + token % BLOCK // 4 * 64 + token % 4
    for unit in range(size // BLOCK):
        store_f16(offset(values, CACHE_BLOCK * size), unit * CACHE_BLOCK + token, quantize_in_place(x, unit))
        for i in range(BLOCK):
            tile = unit * 2 + i // 16
            store_u8(values, tile * TILE_BYTES + place + i % 16 * 4, load_u8(x, unit * BLOCK + i))


@device
def quantize_in_place(x, unit):
    """Rounds values [32 * unit, 32 * unit + 32) of x to int8 and returns their scale. They come to lie at x's bytes of those
    numbers: as many floats at the beginning are not needed any more.
    """
    low, high = load_f32x16(x, unit * BLOCK), load_f32x16(x, unit * BLOCK + 16)
    scale, inverse = scale_of(largest(max_f32x16(abs_f32(low), abs_f32(high))))
    store_i32_as_i8(x, unit * BLOCK, round_to_i32(low * inverse))
    store_i32_as_i8(x, unit * BLOCK + 16, round_to_i32(high * inverse))
    return scale


@device
def prepare(state, size, room):
    for m in range(room):
        quantize_row(offset(state, m * QUERY_PITCH), size // BLOCK, prepared_of(state, room), room, m, ZERO)


@device
def load_block(q):
    return block(
        load_i8x64(q, 0), load_i8x64(q, 64), load_i8x64(q, 128), load_i8x64(q, 192),
        load_i8x64(q, 256), load_i8x64(q, 320), load_i8x64(q, 384), load_i8x64(q, 448),
    )  # fmt: skip


@device
def prefetch_unit_of(next_block, unit):
    for line in range(0, UNIT_BYTES, 64):
        prefetch(next_block, unit * UNIT_BYTES + line)


@device
def score(zero, scratch, state, keys, size, next_keys):
    units, pitch = size // BLOCK, num_rows(zero)
    prepared = prepared_of(state, pitch)
    for tile in range(CACHE_BLOCK // KEY_TILE):
        weights, s = offset(keys, tile * tile_bytes(size)), zero
        for unit in range(units):
            prefetch_unit_of(next_keys, tile * units + unit)
            d = widen(load_f16x16(offset(weights, units * 512 + unit * 32), 0))
            vectors = load_block(offset(weights, unit * 512))
            place = unit * pitch
            s = add_dot_biased(
                s, vectors, d, offset(prepared, place * 32), offset(scales(prepared, units * pitch), place * 4),
                offset(starts(prepared, units * pitch), place * 4),
            )  # fmt: skip
        store_rows(scratch, SCORES_PITCH, tile * KEY_TILE, s)


@device
def weigh(scratch, factors, unit_scales, count, tokens, pitch):
    """The softmax's weights of `count` rows times values' scales as int8 (2, pitch, 32) and float32 scales (2, pitch)."""
    scales = offset(factors, 2 * pitch * BLOCK)
    d0, d1 = load_scales(unit_scales, 0, tokens), load_scales(unit_scales, 16, tokens)
    d2, d3 = load_scales(unit_scales, 32, tokens), load_scales(unit_scales, 48, tokens)
    for m in range(count):
        w = offset(scratch, m * SCORES_PITCH)
        a, b = load_f32x16(w, 0) * d0, load_f32x16(w, 16) * d1
        c, d = load_f32x16(w, 32) * d2, load_f32x16(w, 48) * d3
        most = largest_of_two(max_f32x16(a, b), max_f32x16(c, d))
        store_f32(scales, m, most[0] * float32(1 / 127))
        store_f32(scales, pitch + m, most[1] * float32(1 / 127))
        low = splat_f32(float32(127) / max(most[0], float32(SMALLEST_SCALE)))
        high = splat_f32(float32(127) / max(most[1], float32(SMALLEST_SCALE)))
        store_block(factors, m, round_to_i32(a * low), round_to_i32(b * low))
        store_block(factors, pitch + m, round_to_i32(c * high), round_to_i32(d * high))


@device
def load_scales(unit_scales, part, tokens):
    """Those of tokens [part, part + 16); a token that is not there has none yet."""
    return keep_lanes(tokens - part, widen(load_f16x16(unit_scales, part)), splat_f32(0))


@device
def add_values(zero, scratch, state, values, size, count, tokens, next_values):
    pitch, factors, sums = num_rows(zero), factors_of(scratch), sums_of(state)
    for tile in range(size // 16):
        if tile % 2 == 0:
            weigh(scratch, factors, offset(values, CACHE_BLOCK * (size + tile // 2 * 2)), count, tokens, pitch)
        s = scale_rows(load_rows(sums, QUERY_PITCH, tile * 16, zero), corrections_of(scratch))
        for part in range(2):
            place = offset(values, tile * TILE_BYTES + part * 512)
            prefetch_unit_of(next_values, tile * 2 + part)
            s = add_weighted(s, load_block(place), offset(factors, part * pitch * BLOCK), offset(factors, (16 + part) * pitch * 4))
        store_rows(sums, QUERY_PITCH, tile * 16, s)


@device
def expand_keys(keys, size, panels, apart):
    """A block's as panels of BF16 (kernels/tiled_attention.py), one for each 16 tokens, `apart` bytes apart."""
    units = size // BLOCK
    for tile in range(CACHE_BLOCK // KEY_TILE):
        weights = offset(keys, tile * tile_bytes(size))
        for unit in range(units):
            d = widen(load_f16x16(offset(weights, units * 512 + unit * 32), 0))
            store_scaled_rows(offset(panels, tile * apart + unit * PANEL_UNIT_BYTES), load_block(offset(weights, unit * 512)), d)


@device
def expand_values(values, size, tokens, panels, apart):
    """The same, one panel for each 16 values, of the block's first `tokens`: the others may be anything, and become zeros."""
    for tile in range(size // 16):
        unit_scales = offset(values, CACHE_BLOCK * (size + tile // 2 * 2))
        for part in range(2):
            low, high = load_scales(unit_scales, part * 32, tokens), load_scales(unit_scales, part * 32 + 16, tokens)
            vectors = load_block(offset(values, tile * TILE_BYTES + part * 512))
            store_scaled_columns(offset(panels, tile * apart + part * PANEL_UNIT_BYTES), vectors, low, high)


@device
def unpack_keys(keys, size, out):
    """A block's as float32 (size, CACHE_BLOCK)."""
    units = size // BLOCK
    for tile in range(CACHE_BLOCK // KEY_TILE):
        weights = offset(keys, tile * tile_bytes(size))
        for unit in range(units):
            d, place = widen(load_f16x16(offset(weights, units * 512 + unit * 32), 0)), unit * BLOCK * CACHE_BLOCK + tile * KEY_TILE
            store_columns(offset(out, place * 4), CACHE_BLOCK * 4, load_block(offset(weights, unit * 512)), d)
