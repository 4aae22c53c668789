"""Q8_0: int8 with a float16 scale for every 32 values of a token, as llama.cpp's type of that name.

Keys lie as the weights of a Q8_0 matrix whose rows are the tokens (numatp/quants/q8_0.py): tiles of 16 tokens, per 32 values 8
vectors of q + 128, then 16 scales; so scores are integer dot products with queries rounded to 8 bits. Values are int8 (CACHE_BLOCK,
size), then scales (size / 32, CACHE_BLOCK), with which the softmax's weights are multiplied.
"""


from numatp.kernels.activation import BLOCK, quantize_row, scale_of, scales, starts
from numatp.kernels.compile import device
from numatp.kernels.layout import CACHE_BLOCK, KEY_TILE, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.rows import add_dot_biased, block, num_rows, store_rows
from numatp.kernels.simd import (
    abs_f32,
    largest,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_i8x64,
    load_u8,
    max_f32x16,
    offset,
    prefetch,
    round_to_i32,
    store_f16,
    store_f32x16,
    store_i32_as_i8,
    store_u8,
    widen,
    widen_i8,
)

ZERO = 128  # added to keys: the dot product takes unsigned bytes on one side
UNIT_BYTES = 8 * 64 + 32  # of keys in 16 tokens x 32 values, and of values as well


@device
def tile_bytes(size):
    return (size // BLOCK * UNIT_BYTES + 63) // 64 * 64


@device
def scale_of_block(low, high):
    return scale_of(largest(max_f32x16(abs_f32(low), abs_f32(high))))


@device
def store_key(keys, token, size, x):
    tile, row = offset(keys, token // KEY_TILE * tile_bytes(size)), token % KEY_TILE
    for unit in range(size // BLOCK):
        low, high = load_f32x16(x, unit * BLOCK), load_f32x16(x, unit * BLOCK + 16)
        scale, inverse = scale_of_block(low, high)
        store_f16(offset(tile, size // BLOCK * 512 + unit * 32), row, scale)
        # Through the row's own place as 32 bytes in order: the first bytes of the head, which is not needed any more.
        store_i32_as_i8(x, unit * BLOCK, round_to_i32(low * inverse))
        store_i32_as_i8(x, unit * BLOCK + 16, round_to_i32(high * inverse))
        for i in range(BLOCK):
            store_u8(tile, unit * 512 + i // 4 * 64 + row * 4 + i % 4, load_u8(x, unit * BLOCK + i) ^ ZERO)


@device
def store_value(values, token, size, x):
    for unit in range(size // BLOCK):
        low, high = load_f32x16(x, unit * BLOCK), load_f32x16(x, unit * BLOCK + 16)
        scale, inverse = scale_of_block(low, high)
        store_f16(offset(values, CACHE_BLOCK * size), unit * CACHE_BLOCK + token, scale)
        store_i32_as_i8(values, token * size + unit * BLOCK, round_to_i32(low * inverse))
        store_i32_as_i8(values, token * size + unit * BLOCK + 16, round_to_i32(high * inverse))


@device
def prepare(queries, prepared, size, room):
    for m in range(room):
        quantize_row(offset(queries, m * QUERY_PITCH), size // BLOCK, prepared, room, m, ZERO)


@device
def score(queries, prepared, keys, size, scores, zero, next_keys, next_values):
    units, pitch = size // BLOCK, num_rows(zero)
    for tile in range(CACHE_BLOCK // KEY_TILE):
        weights, s = offset(keys, tile * tile_bytes(size)), zero
        for unit in range(units):
            ahead = (tile * units + unit) * UNIT_BYTES
            for line in range(0, UNIT_BYTES, 64):
                prefetch(next_keys, ahead + line)
                prefetch(next_values, ahead + line)
            d = widen(load_f16x16(offset(weights, units * 512 + unit * 32), 0))
            q = offset(weights, unit * 512)
            vectors = block(
                load_i8x64(q, 0), load_i8x64(q, 64), load_i8x64(q, 128), load_i8x64(q, 192),
                load_i8x64(q, 256), load_i8x64(q, 320), load_i8x64(q, 384), load_i8x64(q, 448),
            )  # fmt: skip
            place = unit * pitch
            s = add_dot_biased(
                s, vectors, d, offset(prepared, place * 32), offset(scales(prepared, units * pitch), place * 4),
                offset(starts(prepared, units * pitch), place * 4),
            )  # fmt: skip
        store_rows(scores, SCORES_PITCH, tile * KEY_TILE, s)


score_few = score


@device
def weigh(scores, scaled, values, size, d, count):
    if d % BLOCK == 0:
        unit_scales = offset(values, CACHE_BLOCK * size + d // BLOCK * CACHE_BLOCK * 2)
        for part in range(0, CACHE_BLOCK, 16):
            scale = widen(load_f16x16(unit_scales, part))
            for m in range(count):
                weights = load_f32x16(offset(scores, m * SCORES_PITCH), part)
                # A token that is not there has weight 0, and no scale yet.
                store_f32x16(offset(scaled, m * SCORES_PITCH), part, weights * scale)
    return scaled


@device
def load_value(values, size, token, d):
    return widen_i8(load_i8x16(values, token * size + d))
