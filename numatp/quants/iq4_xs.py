"""IQ4_XS: super-blocks of 8 x 32 weights; weight = (d * scale) * VALUES[q] of IQ4_NL with q in 0..15 and scale in -32..31.

File block, 136 bytes: float16 d; 8 scales + 32 of 6 bits: the high two bits of all, then the low nibbles of all; per unit 16 bytes
whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is a plane of 4 bits (kernels/planes.py), then
16 scales as int8.
"""

import numpy as np

from numatp.kernels.activation import scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import fit_scales, fit_whole_scales, keep_f16, reciprocal, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import plane_element, store_words
from numatp.kernels.rows import add_dot_biased
from numatp.kernels.simd import (
    lane,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8,
    load_i8x16,
    load_u8,
    offset,
    splat_f32,
    store_i8,
    store_u8,
    widen,
    widen_i8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.iq4_nl import VALUES, code, load_values
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ4_XS"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 128  # added to every weight, so that none is negative


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 136) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    twos = np.stack([blocks[..., 2 + unit // 4] >> unit % 4 * 2 & 3 for unit in range(8)], axis=-1)
    fours = np.stack([blocks[..., 4 + unit // 2] >> unit % 2 * 4 & 15 for unit in range(8)], axis=-1)
    scale = (fours | twos << 4).astype(np.float32) - 32
    bytes16 = blocks[..., 8:].reshape(rows, -1, 8, 16)
    q = np.concatenate([bytes16 & 15, bytes16 >> 4], axis=-1)
    return ((d * scale)[..., None] * VALUES[q].astype(np.float32)).reshape(rows, -1)


@device
def scale_of(block, unit):
    """The scale of one of 8 units of a file block."""
    high = load_u8(block, 2 + unit // 4) >> unit % 4 * 2 & 3
    return (load_u8(block, 4 + unit // 2) >> unit % 2 * 4 & 15 | high << 4) - 32


@device
def store_unit(weights, block, row_bytes, place):
    store_words(weights, offset(block, 8 + place * 16), row_bytes, 0)
    for row in range(16):
        store_i8(weights, 256 + row, scale_of(offset(block, row * row_bytes), place))


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place, first_super = begin * pitch + first, super_of(tile, begin)
    here = shared(tile, first_super, SUPER_BYTES, TILE_BYTES)
    x_scales, x_starts = offset(scales(x, units * pitch), place * 4), offset(starts(x, units * pitch), place * 4)
    x = offset(x, place * 32)
    for index in range(first_super, touched(tile, end)):
        d = widen(load_f16x16(here, 0))
        prefetch_unit(here, SUPER_BYTES)
        here = offset(here, SUPER_BYTES)
        start, stop = units_of(tile, index, end)
        for _ in range(start, stop):
            weights = load_values(here)
            prefetch_unit(here, TILE_BYTES)
            total = add_dot_biased(total, weights, d * widen_i8(load_i8x16(here, 256)), x, x_scales, x_starts)
            here, x = offset(here, TILE_BYTES), offset(x, pitch * 32)
            x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here, both = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES), shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
        d = widen(load_f16x16(both, 0)) * widen_i8(load_i8x16(here, 256))
        store_pairs(out, load_values(here), d, d * splat_f32(-ZERO))
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit = column // 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    q, scale = plane_element(weights, 4, row, column % 32), load_i8(weights, 256 + row)
    return load_f16(shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES), row) * scale * VALUES[q]


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, most = fit_scales(code, x, 8, 32, 95, 4, 15)
        unit = keep_f16(out, 0, most / -32)
        s = fit_whole_scales(code, x, 8, 32, unit, d, -32, 31)
        twos = 0
        for i in range(8):
            scale = int(lane(s, i)) + 32
            twos |= scale >> 4 << 2 * i
            store_u8(out, 4 + i // 2, load_u8(out, 4 + i // 2) | (scale & 15) << 4 if i % 2 else scale & 15)
            inverse = splat_f32(reciprocal(unit * lane(s, i)))
            a, b = load_f32x16(x, i * 32), load_f32x16(x, i * 32 + 16)
            store_nibbles(offset(out, 8 + i * 16), code(a * inverse)[0], code(b * inverse)[0])
        store_u8(out, 2, twos & 255)
        store_u8(out, 3, twos >> 8)
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
