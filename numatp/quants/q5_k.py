"""Q5_K: super-blocks of 8 x 32 weights; weight = (d * scale) * q - (dmin * minimum) with q in 0..31.

File block, 176 bytes: float16 d and dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 32 bytes whose bit i is the highest of unit
i, then per pair of units 32 bytes whose low nibbles are the first unit and high nibbles the second.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 dmin, and a unit is a plane of 4 bits and one of 1
(kernels/planes.py), then 16 scales and 16 minima as bytes.
"""

import numpy as np

from numatp.kernels.activation import block_sums, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import bits_above, fit_lines, fit_whole_lines, keep_f16, line_codes, store_bytes, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import load_fifth_bits, load_nibbles, merged, plane_element, store_bit_plane, store_nibble_plane
from numatp.kernels.rows import add_dot, add_outer
from numatp.kernels.simd import (
    lane,
    largest,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_u8,
    negative,
    offset,
    splat_f32,
    widen,
    widen_u8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.q4_k import sixes, store_scales, store_sixes
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q5_K"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION, ZERO = "q8", 0


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 176) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d, dmin = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32)[..., None] for i in (0, 2))
    scale, minimum = sixes(blocks[..., 4:16])
    pairs = blocks[..., 48:].reshape(rows, -1, 4, 32)
    low = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(rows, -1, 8, 32)
    q = low | np.stack([blocks[..., 16:48] >> unit & 1 for unit in range(8)], axis=-2) << 4
    return (d * scale[..., None] * q.astype(np.float32) - dmin * minimum[..., None]).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, 48 + place // 2 * 32), row_bytes, place % 2 * 4)
    store_bit_plane(offset(weights, 256), offset(block, 16), row_bytes, place)
    store_scales(offset(weights, 320), block, row_bytes, place)


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place, first_super = begin * pitch + first, super_of(tile, begin)
    here = shared(tile, first_super, SUPER_BYTES, TILE_BYTES)
    x_scales, x_sums = offset(scales(x, units * pitch), place * 4), offset(block_sums(x, units * pitch), place * 4)
    x = offset(x, place * 32)
    for index in range(first_super, touched(tile, end)):
        d, minus_dmin = widen(load_f16x16(here, 0)), negative(widen(load_f16x16(here, 16)))
        prefetch_unit(here, SUPER_BYTES)
        here = offset(here, SUPER_BYTES)
        start, stop = units_of(tile, index, end)
        for _ in range(start, stop):
            prefetch_unit(here, TILE_BYTES)
            constants = offset(here, 320)
            total = add_outer(total, minus_dmin * widen_u8(load_i8x16(constants, 16)), x_sums)
            # After the minima: 16 rows leave few registers for weights that wait.
            weights = merged(load_nibbles(here), load_fifth_bits(offset(here, 256)))
            total = add_dot(total, weights, d * widen_u8(load_i8x16(constants, 0)), x, x_scales)
            here, x = offset(here, TILE_BYTES), offset(x, pitch * 32)
            x_scales, x_sums = offset(x_scales, pitch * 4), offset(x_sums, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here, both = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES), shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
        weights, constants = merged(load_nibbles(here), load_fifth_bits(offset(here, 256))), offset(here, 320)
        d = widen(load_f16x16(both, 0)) * widen_u8(load_i8x16(constants, 0))
        minus_m = negative(widen(load_f16x16(both, 16))) * widen_u8(load_i8x16(constants, 16))
        store_pairs(out, weights, d, minus_m)
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    constants = offset(weights, 320)
    both = shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
    scale, minimum = load_f16(both, row) * load_u8(constants, row), load_f16(both, 16 + row) * load_u8(constants, 16 + row)
    return scale * (plane_element(weights, 4, row, k) + plane_element(offset(weights, 256), 1, row, k) * 16) - minimum


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, m = fit_lines(x, 8, 32, 31, 28, 0.25, 21)
        unit, sink = keep_f16(out, 0, largest(d) / 63), keep_f16(out, 1, largest(negative(m)) / 63)
        s, t = fit_whole_lines(x, 8, 32, unit, sink, d, m, 31, 63)
        store_sixes(offset(out, 4), s, t)
        for half in range(2):
            fifth, power = splat_f32(0), 1.0
            for pair in range(4):
                low, high = 2 * pair, 2 * pair + 1
                q_low = line_codes(load_f32x16(x, low * 32 + half * 16), unit * lane(s, low), -sink * lane(t, low), 31)
                q_high = line_codes(load_f32x16(x, high * 32 + half * 16), unit * lane(s, high), -sink * lane(t, high), 31)
                (top_low, q_low), (top_high, q_high) = bits_above(q_low, 16), bits_above(q_high, 16)
                store_nibbles(offset(out, 48 + pair * 32 + half * 16), q_low, q_high)
                fifth = fifth + splat_f32(power) * (top_low + top_high + top_high)
                power *= 4
            store_bytes(offset(out, 16 + half * 16), fifth)
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
