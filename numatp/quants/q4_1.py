"""Q4_1: blocks of 32 weights with float16 scale d and minimum m; weight = d * q + m with q in 0..15.

File block, 20 bytes: d, m, then 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: per block a plane of 4 bits (kernels/planes.py), then 16 d and 16 m.
"""

import numpy as np

from numatp.kernels.activation import block_sums, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import units_finite
from numatp.kernels.fit import fit_line, keep_f16, line_codes, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import load_nibbles, plane_element, store_halves, store_words
from numatp.kernels.rows import add_dot, add_outer
from numatp.kernels.simd import load_f16, load_f16x16, load_f32x16, offset, widen
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q4_1"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION, ZERO = "q8", 0


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 20) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d, m = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    q = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    return (d * q.astype(np.float32) + m).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 4), row_bytes, 0)
        store_halves(offset(weights, 256), block, row_bytes)
        store_halves(offset(weights, 288), offset(block, 2), row_bytes)


finite = units_finite(TILE_BYTES, 256, 2)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_sums = offset(scales(x, units * pitch), place * 4), offset(block_sums(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        prefetch_unit(tile, TILE_BYTES)
        constants = offset(tile, 256)
        total = add_outer(total, widen(load_f16x16(constants, 16)), x_sums)
        weights = load_nibbles(tile)  # after the minima: 16 rows leave few registers for weights that wait
        total = add_dot(total, weights, widen(load_f16x16(constants, 0)), x, x_scales)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_sums = offset(x_scales, pitch * 4), offset(x_sums, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        constants = offset(here, 256)
        store_pairs(out, load_nibbles(here), widen(load_f16x16(constants, 0)), widen(load_f16x16(constants, 16)))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights = offset(tile, column // 32 * TILE_BYTES)
    q, constants = plane_element(weights, 4, row, column % 32), offset(weights, 256)
    return load_f16(constants, row) * q + load_f16(constants, 16 + row)


@device
def quantize(x, columns, out):
    for block in range(columns // BLOCK):
        a, b = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
        d, m = fit_line(a, b, 15, 12, 0.25, 21, False)
        d, m = keep_f16(out, 0, d), keep_f16(out, 1, m)
        store_nibbles(offset(out, 4), line_codes(a, d, m, 15), line_codes(b, d, m, 15))
        out = offset(out, BLOCK_BYTES)
