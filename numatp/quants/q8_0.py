"""Q8_0: blocks of 32 weights with a float16 scale d; weight = d * q with q in -128..127.

File block, 34 bytes: d, then 32 int8.
Tile: per block 8 vectors of 64 bytes, vector j holding q + 128 for columns 4j..4j+3 of each of the 16 rows (some ISAs
multiply unsigned weights); then 16 d.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import units_finite
from numatp.kernels.fit import fit_scale, keep_f16, reciprocal, rounded, store_bytes
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import store_halves, store_words
from numatp.kernels.rows import add_dot_biased, block
from numatp.kernels.simd import (
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8x64,
    load_u8,
    offset,
    splat_f32,
    widen,
)
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q8_0"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION = "q8"
ZERO = 128  # added to every weight, so that none is negative
SIGNS = -0x7F7F7F80  # 0x80808080 as int32: flips the sign bit of four bytes, which adds 128 to each


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 34) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    return (d * blocks[..., 2:].view(np.int8).astype(np.float32)).reshape(rows, -1)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for unit in range(units):
        weights, block = offset(tile, unit * TILE_BYTES), offset(source, (first_unit + unit) * BLOCK_BYTES)
        store_words(weights, offset(block, 2), row_bytes, SIGNS)
        store_words(offset(weights, 256), offset(block, 18), row_bytes, SIGNS)
        store_halves(offset(weights, 512), block, row_bytes)


finite = units_finite(TILE_BYTES, 512, 1)


@device
def load_bytes(tile):
    """A unit as the 8 weight vectors of 16 rows x 32 columns."""
    return block(
        load_i8x64(tile, 0), load_i8x64(tile, 64), load_i8x64(tile, 128), load_i8x64(tile, 192),
        load_i8x64(tile, 256), load_i8x64(tile, 320), load_i8x64(tile, 384), load_i8x64(tile, 448),
    )  # fmt: skip


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = load_bytes(tile)
        prefetch_unit(tile, TILE_BYTES)
        total = add_dot_biased(total, weights, widen(load_f16x16(offset(tile, 512), 0)), x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = widen(load_f16x16(offset(here, 512), 0))
        store_pairs(out, load_bytes(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights, k = offset(tile, column // 32 * TILE_BYTES), column % 32
    q = load_u8(weights, k // 4 * 64 + row * 4 + k % 4)
    return load_f16(offset(weights, 512), row) * (q - 128)


@device
def code(v):
    q = rounded(v, -127, 127)
    return q, q


@device
def quantize(x, columns, out):
    for i in range(columns // BLOCK):
        a, b = load_f32x16(x, i * 32), load_f32x16(x, i * 32 + 16)
        inverse = splat_f32(reciprocal(keep_f16(out, 0, fit_scale(code, a, b, 121, 0.5, 16))))
        store_bytes(offset(out, 2), code(a * inverse)[0])
        store_bytes(offset(out, 18), code(b * inverse)[0])
        out = offset(out, BLOCK_BYTES)
