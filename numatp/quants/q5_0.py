"""Q5_0: blocks of 32 weights with a float16 scale d; weight = d * (q - 16) with q in 0..31.

File block, 22 bytes: d, the highest bits of all weights as one little-endian number, then 16 bytes whose low nibbles are weights
0-15 and high nibbles weights 16-31.
Tile: per block a plane of 4 bits and one of 1 (kernels/planes.py), then 16 d.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import units_finite
from numatp.kernels.fit import fit_scale, keep_f16, reciprocal, rounded, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import (
    load_fifth_bits,
    load_nibbles,
    load_words,
    merged,
    plane_element,
    store_bits,
    store_halves,
    store_words,
)
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    bits_of,
    floor_f32,
    load_f16,
    load_f16x16,
    load_f32x16,
    offset,
    splat_f32,
    store_i16,
    widen,
)
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q5_0"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION = "q8"
ZERO = 16  # the q of a zero


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 22) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    low = np.concatenate([blocks[..., 6:] & 15, blocks[..., 6:] >> 4], axis=-1)
    q = low | np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little") << 4
    return (d * (q.astype(np.float32) - ZERO)).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 6), row_bytes, 0)
        store_bits(offset(weights, 256), load_words(offset(block, 2), row_bytes)[0])
        store_halves(offset(weights, 320), block, row_bytes)


finite = units_finite(TILE_BYTES, 320, 1)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = merged(load_nibbles(tile), load_fifth_bits(offset(tile, 256)))
        prefetch_unit(tile, TILE_BYTES)
        d = widen(load_f16x16(offset(tile, 320), 0))
        total = add_dot_from(total, weights, d, x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = widen(load_f16x16(offset(here, 320), 0))
        store_pairs(out, merged(load_nibbles(here), load_fifth_bits(offset(here, 256))), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights, k = offset(tile, column // 32 * TILE_BYTES), column % 32
    q = plane_element(weights, 4, row, k) + plane_element(offset(weights, 256), 1, row, k) * 16
    return load_f16(offset(weights, 320), row) * (q - ZERO)


@device
def code(v):
    q = rounded(v, -16, 15)
    return q, q


@device
def store_fives(out, low, high):
    """20 bytes of 32 whole numbers in 0..31: the highest bits of all, then the nibbles."""
    top_low, top_high = floor_f32(low * splat_f32(1 / 16)), floor_f32(high * splat_f32(1 / 16))
    store_i16(out, 0, bits_of(top_low))
    store_i16(out, 1, bits_of(top_high))
    sixteen = splat_f32(16)
    store_nibbles(offset(out, 4), low - sixteen * top_low, high - sixteen * top_high)


@device
def quantize(x, columns, out):
    for block in range(columns // BLOCK):
        a, b = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
        inverse = splat_f32(reciprocal(keep_f16(out, 0, fit_scale(code, a, b, 13, 0.25, 17))))
        zero = splat_f32(ZERO)
        store_fives(offset(out, 2), code(a * inverse)[0] + zero, code(b * inverse)[0] + zero)
        out = offset(out, BLOCK_BYTES)
