"""Q4_K: super-blocks of 8 x 32 weights; weight = (d * scale) * q - (dmin * minimum) with q in 0..15.

File block, 144 bytes: float16 d and dmin, 8 scales and 8 minima of 6 bits in 12 bytes, then per pair of units 32 bytes whose low
nibbles are the first unit and high nibbles the second.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 dmin, and a unit is a plane of 4 bits
(kernels/planes.py), then 16 scales and 16 minima as bytes.
"""

import numpy as np

from numatp.kernels.activation import block_sums, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import fit_lines, fit_whole_lines, keep_f16, line_codes, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import load_nibbles, load_words, plane_element, store_nibble_plane
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
    shift_right,
    splat_i32,
    store_i32_as_i8,
    store_u8,
    widen,
    widen_u8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q4_K"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION, ZERO = "q8", 0


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 144) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d, dmin = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32)[..., None] for i in (0, 2))
    scale, minimum = sixes(blocks[..., 4:16])
    pairs = blocks[..., 16:].reshape(rows, -1, 4, 32)
    q = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(rows, -1, 8, 32)
    return (d * scale[..., None] * q.astype(np.float32) - dmin * minimum[..., None]).reshape(rows, -1)


def sixes(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes to 8 scales and 8 minima, float32: six bits each of the first four, then low nibbles with two bits of those."""
    low, high, nibbles = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([low & 63, nibbles & 15 | low >> 6 << 4], axis=-1)
    minimum = np.concatenate([high & 63, nibbles >> 4 | high >> 6 << 4], axis=-1)
    return scale.astype(np.float32), minimum.astype(np.float32)


@device
def store_scales(out, block, row_bytes, place):
    """The place-th scale of 16 file blocks and then their minima."""
    _, low, high, nibbles = load_words(block, row_bytes)
    byte = place % 4 * 8
    if place < 4:
        scale, minimum = shift_right(low, byte) & splat_i32(63), shift_right(high, byte) & splat_i32(63)
    else:
        scale = shift_right(nibbles, byte) & splat_i32(15) | shift_right(low, byte + 2) & splat_i32(48)
        minimum = shift_right(nibbles, byte + 4) & splat_i32(15) | shift_right(high, byte + 2) & splat_i32(48)
    store_i32_as_i8(out, 0, scale)
    store_i32_as_i8(out, 16, minimum)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, 16 + place // 2 * 32), row_bytes, place % 2 * 4)
    store_scales(offset(weights, 256), block, row_bytes, place)


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
            constants = offset(here, 256)
            total = add_outer(total, minus_dmin * widen_u8(load_i8x16(constants, 16)), x_sums)
            weights = load_nibbles(here)  # after the minima: 16 rows leave few registers for weights that wait
            total = add_dot(total, weights, d * widen_u8(load_i8x16(constants, 0)), x, x_scales)
            here, x = offset(here, TILE_BYTES), offset(x, pitch * 32)
            x_scales, x_sums = offset(x_scales, pitch * 4), offset(x_sums, pitch * 4)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here, both = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES), shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
        constants = offset(here, 256)
        d = widen(load_f16x16(both, 0)) * widen_u8(load_i8x16(constants, 0))
        minus_m = negative(widen(load_f16x16(both, 16))) * widen_u8(load_i8x16(constants, 16))
        store_pairs(out, load_nibbles(here), d, minus_m)
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit = column // 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    constants = offset(weights, 256)
    both = shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
    scale, minimum = load_f16(both, row) * load_u8(constants, row), load_f16(both, 16 + row) * load_u8(constants, 16 + row)
    return scale * plane_element(weights, 4, row, column % 32) - minimum


@device
def store_sixes(out, scale, minimum):
    """12 bytes of 8 scales and 8 minima in 0..63."""
    for i in range(4):
        s, t, s_high, t_high = int(lane(scale, i)), int(lane(minimum, i)), int(lane(scale, i + 4)), int(lane(minimum, i + 4))
        store_u8(out, i, s | s_high >> 4 << 6)
        store_u8(out, i + 4, t | t_high >> 4 << 6)
        store_u8(out, i + 8, s_high & 15 | (t_high & 15) << 4)


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, m = fit_lines(x, 8, 32, 15, 12, 0.25, 21)
        unit, sink = keep_f16(out, 0, largest(d) / 63), keep_f16(out, 1, largest(negative(m)) / 63)
        s, t = fit_whole_lines(x, 8, 32, unit, sink, d, m, 15, 63)
        store_sixes(offset(out, 4), s, t)
        for i in range(8):  # pairs of units, halves
            low, high = i // 2 * 2, i // 2 * 2 + 1
            store_nibbles(
                offset(out, 16 + i * 16),
                line_codes(load_f32x16(x, low * 32 + i % 2 * 16), unit * lane(s, low), -sink * lane(t, low), 15),
                line_codes(load_f32x16(x, high * 32 + i % 2 * 16), unit * lane(s, high), -sink * lane(t, high), 15),
            )
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
