"""Q3_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (q - 4) with q in 0..7 and scale in -32..31.

File block, 110 bytes: 32 bytes whose bit i is the highest of unit i of 32 weights; for each half of 128 weights 32 bytes with two
bits of each of its four units; 16 scales + 32 of 6 bits in 12 bytes; float16 d.
Tile: per unit a plane of 2 bits and one of 1 (kernels/planes.py); behind all units, per unit 16 scales of its first and 16 of its
second half; then the end that kernels/superblock.py describes, with 16 d.
"""

import numpy as np

from numatp.kernels.activation import half_sums, scales
from numatp.kernels.compile import device
from numatp.kernels.fit import bits_above, fit_scales, fit_whole_scales, keep_f16, reciprocal, rounded, store_bytes
from numatp.kernels.planes import first_half, merged, plane_element, plane_loader, second_half, store_word
from numatp.kernels.rows import add_dot, add_outer
from numatp.kernels.simd import (
    lane,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8,
    load_i8x16,
    load_i32,
    load_u8,
    offset,
    prefetch,
    splat_f32,
    store_f16,
    store_i8,
    store_u8,
    widen,
    widen_i8,
)
from numatp.kernels.superblock import shared, store_phase, super_of, touched, units_of

BLOCK, BLOCK_BYTES = 256, 110
TILE_BYTES, SUPER_BYTES = 16 * 14, 32
ACTIVATION = "q8"
PREFETCH = 4096  # bytes ahead
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
def pack(source, row_bytes, rows, first_unit, units, tile):
    constants, end = offset(tile, units * 192), offset(tile, units * TILE_BYTES)
    store_phase(end, first_unit)
    for row in range(16):
        block = offset(source, row * row_bytes + first_unit // 8 * BLOCK_BYTES)
        for index in range(touched(end, units)):
            store_f16(shared(end, index, SUPER_BYTES), row, load_f16(block, 54) if row < rows else 0)
            first, last = units_of(end, index, units)
            for unit in range(first, last if row < rows else first):
                place = (first_unit + unit) % 8
                store_i8(constants, unit * 32 + row, scale_of(offset(block, 96), 2 * place))
                store_i8(constants, unit * 32 + 16 + row, scale_of(offset(block, 96), 2 * place + 1))
                pairs = offset(block, 32 + place // 4 * 32)
                for j in range(8):
                    store_word(offset(tile, unit * 192), 2, row, j, load_i32(pairs, j) >> place % 4 * 2)
                    store_word(offset(tile, unit * 192 + 128), 1, row, j, load_i32(block, j) >> place)
            block = offset(block, BLOCK_BYTES)


@device
def dot_tile(tile, x, first, pitch, units, total):
    constants, end = offset(tile, units * 192), offset(tile, units * TILE_BYTES)
    x_scales, x_sums = offset(scales(x, units * pitch), first * 4), offset(half_sums(x, units * pitch), first * 4)
    x = offset(x, first * 32)
    minus_zero = splat_f32(-ZERO)
    for index in range(touched(end, units)):
        d = widen(load_f16x16(shared(end, index, SUPER_BYTES), 0))
        begin, stop = units_of(end, index, units)
        for _ in range(begin, stop):
            weights = merged(load_pairs(tile), load_third_bits(offset(tile, 128)))
            for line in range(3):
                prefetch(tile, PREFETCH + line * 64)
            scale, second_scale = d * widen_i8(load_i8x16(constants, 0)), d * widen_i8(load_i8x16(constants, 16))
            total = add_outer(total, minus_zero * scale, x_sums)
            total = add_outer(total, minus_zero * second_scale, offset(x_sums, pitch * 4))
            total = add_dot(total, first_half(weights), scale, x, x_scales)
            total = add_dot(total, second_half(weights), second_scale, offset(x, 16), x_scales)
            tile, constants, x = offset(tile, 192), offset(constants, 32), offset(x, pitch * 32)
            x_scales, x_sums = offset(x_scales, pitch * 4), offset(x_sums, pitch * 8)
    return total


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    constants, end = offset(tile, units * 192 + unit * 32), offset(tile, units * TILE_BYTES)
    low, high = offset(tile, unit * 192), offset(tile, unit * 192 + 128)
    q = plane_element(low, 2, row, k) + plane_element(high, 1, row, k) * 4 - ZERO
    return load_f16(shared(end, super_of(end, unit), SUPER_BYTES), row) * load_i8(constants, k // 16 * 16 + row) * q


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
