"""IQ4_NL: blocks of 32 weights with a float16 scale d; weight = d * VALUES[q] with q in 0..15.

File block, 18 bytes: d, then 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31, as in Q4_0.
Tile: per block a plane of 4 bits (kernels/planes.py), then 16 d.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.fit import fit_scale, keep_f16, reciprocal, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import plane_element, plane_loader
from numatp.kernels.rows import add_dot_biased
from numatp.kernels.simd import load_f16, load_f16x16, load_f32x16, nearest_of, offset, splat_f32, widen
from numatp.quants import q4_0
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ4_NL"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES = FORMAT.tile_bytes
ACTIVATION = "q8"
ZERO = 128  # added to every weight, so that none is negative
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

pack, finite = q4_0.pack, q4_0.finite  # the same bytes of another meaning
load_values = plane_loader(4, 0, table=[int(value) + 128 for value in VALUES])


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 18) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    q = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return (d * VALUES[q].astype(np.float32)).reshape(rows, -1)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place = begin * pitch + first
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    tile, x = offset(tile, begin * TILE_BYTES), offset(x, place * 32)
    for _ in range(begin, end):
        weights = load_values(tile)
        prefetch_unit(tile, TILE_BYTES)
        total = add_dot_biased(total, weights, widen(load_f16x16(offset(tile, 256), 0)), x, x_scales, x_starts)
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = offset(tile, unit * TILE_BYTES)
        d = widen(load_f16x16(offset(here, 256), 0))
        store_pairs(out, load_values(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights = offset(tile, column // 32 * TILE_BYTES)
    q = plane_element(weights, 4, row, column % 32)
    return load_f16(offset(weights, 256), row) * VALUES[q]


nearest = nearest_of(VALUES, range(16))


@device
def code(v):
    return nearest(v)


@device
def quantize(x, columns, out):
    for block in range(columns // BLOCK):
        a, b = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
        inverse = splat_f32(reciprocal(keep_f16(out, 0, fit_scale(code, a, b, 95, 4, 15))))
        store_nibbles(offset(out, 2), code(a * inverse)[0], code(b * inverse)[0])
        out = offset(out, BLOCK_BYTES)
