"""Q3_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (q - 4) with q in 0..7 and scale in -32..31.

File block, 110 bytes: 32 bytes whose bit i is the highest of unit i of 32 weights; for each half of 128 weights 32 bytes with two
bits of each of its four units; 16 scales + 32 of 6 bits in 12 bytes; float16 d.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is a plane of 2 bits and one of 1
(kernels/planes.py), then the scales + 32 of its halves: 16 bytes with the low nibbles of the first half's scales in their low and
of the second's in their high nibbles, and 8 bytes with the high two bits of both, rows 0-7 in their low and rows 8-15 in their
high nibbles.
"""

import numpy as np

from numatp.kernels.activation import half_starts, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import bits_above, fit_scales, fit_whole_scales, keep_f16, reciprocal, rounded, store_bytes
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import (
    first_half,
    merged,
    plane_element,
    plane_loader,
    second_half,
    store_bit_plane,
    store_pair_plane,
)
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    high_nibbles,
    high_twos,
    lane,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_nibbles16,
    load_u8,
    low_nibbles,
    low_twos,
    offset,
    splat_f32,
    store_u8,
    widen,
    widen_u8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q3_K"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 4  # the q of a zero

load_pairs, load_third_bits = plane_loader(2, 0), plane_loader(1, 2)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 110) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    high = np.stack([blocks[..., :32] >> unit & 1 for unit in range(8)], axis=-2)
    pairs = blocks[..., 32:96].reshape(rows, -1, 2, 32)
    low = np.stack([pairs >> 2 * unit & 3 for unit in range(4)], axis=-2).reshape(rows, -1, 8, 32)
    q = (low | high << 2).astype(np.float32).reshape(rows, -1, 16, 16)
    fours, twos = blocks[..., 96:104], blocks[..., 104:108]
    scale = np.concatenate([fours & 15, fours >> 4], axis=-1) | np.concatenate([twos >> 2 * i & 3 for i in range(4)], axis=-1) << 4
    d = blocks[..., 108:].copy().view(np.float16).astype(np.float32)
    return ((d * (scale.astype(np.float32) - 32))[..., None] * (q - ZERO)).reshape(rows, -1)


@device
def scale_of(packed, index):
    """One of 16 scales, of the 12 bytes at packed."""
    low = load_u8(packed, index % 8) >> index // 8 * 4 & 15
    return (low | (load_u8(packed, 8 + index % 4) >> index // 4 * 2 & 3) << 4) - 32


@device
def store_unit(weights, block, row_bytes, place):
    constants = offset(weights, 192)
    store_pair_plane(weights, offset(block, 32 + place // 4 * 32), row_bytes, place % 4 * 2)
    store_bit_plane(offset(weights, 128), block, row_bytes, place)
    for row in range(16):
        one, other = scale_of(offset(block, 96), 2 * place) + 32, scale_of(offset(block, 96), 2 * place + 1) + 32
        store_u8(constants, row, one & 15 | (other & 15) << 4)
        high, bits = 16 + row % 8, one >> 4 | other >> 4 << 2
        store_u8(constants, high, load_u8(constants, high) | bits << 4 if row >= 8 else bits)
        block = offset(block, row_bytes)


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (54,))


@device
def whole_scale(low, high):
    return widen_u8(low) + splat_f32(16) * widen_u8(high) - splat_f32(32)


finite = supers_finite(SUPER_BYTES, TILE_BYTES)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place, first_super = begin * pitch + first, super_of(tile, begin)
    here = shared(tile, first_super, SUPER_BYTES, TILE_BYTES)
    x_scales = offset(scales(x, units * pitch), place * 4)
    x_starts = offset(half_starts(x, units * pitch), (place + begin * pitch) * 4)
    x = offset(x, place * 32)
    for index in range(first_super, touched(tile, end)):
        d = widen(load_f16x16(here, 0))
        prefetch_unit(here, SUPER_BYTES)
        here = offset(here, SUPER_BYTES)
        start, stop = units_of(tile, index, end)
        for _ in range(start, stop):
            weights = merged(load_pairs(here), load_third_bits(offset(here, 128)))
            prefetch_unit(here, TILE_BYTES)
            constants = offset(here, 192)
            low, high = load_i8x16(constants, 0), load_nibbles16(constants, 16)
            scale = d * whole_scale(low_nibbles(low), low_twos(high))
            second_scale = d * whole_scale(high_nibbles(low), high_twos(high))
            total = add_dot_from(total, first_half(weights), scale, x, x_scales, x_starts)
            second_x, second_starts = offset(x, 16), offset(x_starts, pitch * 4)
            total = add_dot_from(total, second_half(weights), second_scale, second_x, x_scales, second_starts)
            here, x = offset(here, TILE_BYTES), offset(x, pitch * 32)
            x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 8)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here, both = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES), shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
        weights, constants = merged(load_pairs(here), load_third_bits(offset(here, 128))), offset(here, 192)
        d, zero = widen(load_f16x16(both, 0)), splat_f32(-ZERO)
        low, high = load_i8x16(constants, 0), load_nibbles16(constants, 16)
        scale = d * whole_scale(low_nibbles(low), low_twos(high))
        second_scale = d * whole_scale(high_nibbles(low), high_twos(high))
        store_pairs(out, first_half(weights), scale, scale * zero)
        store_pairs(offset(out, PANEL_UNIT_BYTES // 2), second_half(weights), second_scale, second_scale * zero)
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    constants = offset(weights, 192)
    q = plane_element(weights, 2, row, k) + plane_element(offset(weights, 128), 1, row, k) * 4 - ZERO
    nibble, bits = load_u8(constants, row), load_u8(constants, 16 + row % 8) >> row // 8 * 4
    scale = (nibble >> k // 16 * 4 & 15 | (bits >> k // 16 * 2 & 3) << 4) - 32
    return load_f16(shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES), row) * scale * q


@device
def code(v):
    q = rounded(v, -ZERO, ZERO - 1)
    return q, q


@device
def store_scales(out, scale):
    """12 bytes of 16 scales in -32..31."""
    for i in range(4):
        store_u8(out, 8 + i, 0)
    for i in range(16):
        s = int(lane(scale, i)) + 32
        store_u8(out, i % 8, s & 15 if i < 8 else load_u8(out, i % 8) | (s & 15) << 4)
        store_u8(out, 8 + i % 4, load_u8(out, 8 + i % 4) | s >> 4 << i // 4 * 2)


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, most = fit_scales(code, x, 16, 16, 2.5, 0.125, 19)
        unit = keep_f16(out, 54, most / -32)
        s = fit_whole_scales(code, x, 16, 16, unit, d, -32, 31)
        store_scales(offset(out, 96), s)
        for half in range(2):  # of each unit
            third, top_power = splat_f32(0), 1.0
            for part in range(2):
                byte, power = splat_f32(0), 1.0
                for place in range(4):
                    block = part * 8 + place * 2 + half
                    q = code(load_f32x16(x, block * 16) * splat_f32(reciprocal(unit * lane(s, block))))[0] + splat_f32(ZERO)
                    top, q = bits_above(q, 4)
                    byte, third = byte + splat_f32(power) * q, third + splat_f32(top_power) * top
                    power, top_power = power * 4, top_power * 2
                store_bytes(offset(out, 32 + part * 32 + half * 16), byte)
            store_bytes(offset(out, half * 16), third)
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
