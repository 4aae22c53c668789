"""Q4_0: blocks of 32 weights with a float16 scale d; weight = d * (q - 8) with q in 0..15.

File block, 18 bytes: d, then 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: per block a plane of 4 bits (kernels/planes.py), then 16 d.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import units_finite
from numatp.kernels.fit import fit_scale, keep_f16, reciprocal, rounded, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import load_nibbles, plane_element, store_halves, store_words
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    load_f16,
    load_f16x16,
    load_f32x16,
    offset,
    splat_f32,
    widen,
)
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q4_0"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION = "q8"
ZERO = 8  # the q of a zero


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 18) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    q = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return (d * (q.astype(np.float32) - ZERO)).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 2), row_bytes, 0)
        store_halves(offset(weights, 256), block, row_bytes)


finite = units_finite(TILE_BYTES, 256, 1)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = load_nibbles(tile)
        prefetch_unit(tile, TILE_BYTES)
        d = widen(load_f16x16(offset(tile, 256), 0))
        total = add_dot_from(total, weights, d, x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = widen(load_f16x16(offset(here, 256), 0))
        store_pairs(out, load_nibbles(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights = offset(tile, column // 32 * TILE_BYTES)
    q = plane_element(weights, 4, row, column % 32)
    return load_f16(offset(weights, 256), row) * (q - ZERO)


@device
def code(v):
    q = rounded(v, -8, 7)
    return q, q


@device
def quantize(x, columns, out):
    for block in range(columns // BLOCK):
        a, b = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
        inverse = splat_f32(reciprocal(keep_f16(out, 0, fit_scale(code, a, b, 6, 0.25, 13))))
        zero = splat_f32(ZERO)
        store_nibbles(offset(out, 2), code(a * inverse)[0] + zero, code(b * inverse)[0] + zero)
        out = offset(out, BLOCK_BYTES)
