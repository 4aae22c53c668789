"""Q6_0: blocks of 32 weights with a float16 scale d; weight = d * (q - 32) with q in 0..63.

File block, 26 bytes: d; 8 bytes, of which byte i holds the high two bits of weights i, i + 16, i + 8 and i + 24, the first ones
lowest; then 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: per block a plane of 4 bits and one of 2 (kernels/planes.py), then 16 d.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import units_finite
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import load_nibbles, merged, plane_element, plane_loader, store_halves, store_words
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import load_f16, load_f16x16, load_u32, offset, splat_f32, store_u32, widen
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q6_0"]
BLOCK_BYTES, TILE_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes
ACTIVATION = "q8"
ZERO = 32  # the q of a zero

load_high = plane_loader(2, 4)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 26) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    low = np.concatenate([blocks[..., 10:] & 15, blocks[..., 10:] >> 4], axis=-1)
    high = np.concatenate([blocks[..., 2:10] >> shift & 3 for shift in (0, 4, 2, 6)], axis=-1)
    return (d * ((low | high << 4).astype(np.float32) - ZERO)).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 10), row_bytes, 0)
        for row in range(16):
            for i in range(2):
                word = load_u32(offset(block, row * row_bytes + 2), i)
                inner = (word >> 2 & 0x0C0C0C0C) | (word & 0x0C0C0C0C) << 2  # of four numbers the second and third change places
                store_u32(offset(weights, 256), 16 * i + row, word & 0xC3C3C3C3 | inner)
        store_halves(offset(weights, 384), block, row_bytes)


finite = units_finite(TILE_BYTES, 384, 1)


@device
def load_unit(weights):
    return merged(load_nibbles(weights), load_high(offset(weights, 256)))


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = load_unit(tile)
        prefetch_unit(tile, TILE_BYTES)
        total = add_dot_from(total, weights, widen(load_f16x16(offset(tile, 384), 0)), x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = widen(load_f16x16(offset(here, 384), 0))
        store_pairs(out, load_unit(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights, k = offset(tile, column // 32 * TILE_BYTES), column % 32
    q = plane_element(weights, 4, row, k) + plane_element(offset(weights, 256), 2, row, k) * 16
    return load_f16(offset(weights, 384), row) * (q - ZERO)
