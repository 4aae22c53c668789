"""MXFP4: blocks of 32 weights with a power of two as scale; weight = 2**(e - 128) * VALUES[q] with q in 0..15 and a byte e.

File block, 17 bytes: e, then 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31. The format (OCP MX 1.0)
counts in 2**(e - 127) and halves: VALUES are doubled, so they are whole.
Tile: per block a plane of 4 bits (kernels/planes.py), then 16 e.
"""

from math import floor, log2

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import add_zeros, are_zeros
from numatp.kernels.fit import SMALLEST, reciprocal, scale_error, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import plane_element, plane_loader, store_words
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    abs_f32,
    half_power,
    half_powers,
    largest,
    load_f32x16,
    load_i8x16,
    load_u8,
    max_f32x16,
    nearest_of,
    offset,
    splat_f32,
    store_u8,
)
from numatp.quants.table import FORMATS

FORMAT = FORMATS["MXFP4"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION = "q8"
VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
ZERO = 12  # what the table adds to VALUES, so that none is negative

load_values = plane_loader(4, 0, table=[int(value) + ZERO for value in VALUES])


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 17) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    q = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    return np.ldexp(VALUES[q].astype(np.float32), blocks[..., :1].astype(np.int32) - 128).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 1), row_bytes, 0)
        for row in range(16):
            store_u8(weights, 256 + row, load_u8(block, row * row_bytes))


@device
def finite(tile, units):
    """e of 255 is the format's NaN, and of 253 and 254 no float32 holds the largest weight."""
    total = splat_f32(0)
    for unit in range(units):
        total = add_zeros(total, half_powers(load_i8x16(tile, unit * TILE_BYTES + 256)) * splat_f32(12))
    return are_zeros(total)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = load_values(tile)
        prefetch_unit(tile, TILE_BYTES)
        d = half_powers(load_i8x16(tile, 256))
        total = add_dot_from(total, weights, d, x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = half_powers(load_i8x16(here, 256))
        store_pairs(out, load_values(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights = offset(tile, column // 32 * TILE_BYTES)
    q = plane_element(weights, 4, row, column % 32)
    return half_power(load_u8(weights, 256 + row)) * VALUES[q]


ORDER = [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7]  # codes by their values
nearest = nearest_of(VALUES[ORDER], ORDER)


@device
def code(v):
    return nearest(v)


@device
def fit_exponent(a, b):
    """The e that loses least, near the one that makes the largest weight 8 to 16 times 2**(e - 128)."""
    magnitude = largest(max_f32x16(abs_f32(a), abs_f32(b)))
    near = floor(log2(magnitude)) + 125 if magnitude > SMALLEST else 1
    best, error = 0, 0.0
    for i in range(3):
        e = min(max(near + i - 1, 0), 254)
        new = scale_error(code, a, b, half_power(e))
        if i == 0 or new < error:
            best, error = e, new
    return best


@device
def quantize(x, columns, out):
    for block in range(columns // BLOCK):
        a, b = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
        store_u8(out, 0, fit_exponent(a, b))
        inverse = splat_f32(reciprocal(half_power(load_u8(out, 0))))
        store_nibbles(offset(out, 1), code(a * inverse)[0], code(b * inverse)[0])
        out = offset(out, BLOCK_BYTES)
