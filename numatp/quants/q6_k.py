"""Q6_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (q - 32) with q in 0..63 and an int8 scale.

File block, 210 bytes: for each half of 128 weights 64 bytes whose low nibbles are units 0 and 1 of 32 weights, high nibbles units 2
and 3; then for each half 32 bytes with the highest two bits of its units 0..3; 16 scales; float16 d.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is a plane of 4 bits and one of 2
(kernels/planes.py), then 16 scales of its first and 16 of its second half.
"""

import numpy as np

from numatp.kernels.activation import half_starts, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import bits_above, fit_scales, fit_whole_scales, keep_f16, reciprocal, rounded, store_bytes, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import (
    first_half,
    load_nibbles,
    merged,
    plane_element,
    plane_loader,
    second_half,
    store_nibble_plane,
    store_pair_plane,
)
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    lane,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8,
    load_i8x16,
    offset,
    splat_f32,
    store_i8,
    widen,
    widen_i8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q6_K"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 32  # the q of a zero

load_high = plane_loader(2, 4)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 210) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    low, high = blocks[..., :128].reshape(rows, -1, 2, 2, 32), blocks[..., 128:192].reshape(rows, -1, 2, 32)
    low = np.stack([low & 15, low >> 4], axis=-3).reshape(rows, -1, 2, 4, 32)
    high = np.stack([high >> 2 * unit & 3 for unit in range(4)], axis=-2)
    q = (low | high << 4).astype(np.float32).reshape(rows, -1, 16, 16)
    scale = blocks[..., 192:208].view(np.int8).astype(np.float32)
    d = blocks[..., 208:].copy().view(np.float16).astype(np.float32)
    return ((d * scale)[..., None] * (q - ZERO)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, place // 4 * 64 + place % 2 * 32), row_bytes, place % 4 // 2 * 4)
    store_pair_plane(offset(weights, 256), offset(block, 128 + place // 4 * 32), row_bytes, place % 4 * 2)
    for row in range(16):
        store_i8(weights, 384 + row, load_i8(block, row * row_bytes + 192 + 2 * place))
        store_i8(weights, 400 + row, load_i8(block, row * row_bytes + 193 + 2 * place))


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (104,))
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
            weights = merged(load_nibbles(here), load_high(offset(here, 256)))
            prefetch_unit(here, TILE_BYTES)
            constants = offset(here, 384)
            scale, second_scale = d * widen_i8(load_i8x16(constants, 0)), d * widen_i8(load_i8x16(constants, 16))
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
        weights, constants = merged(load_nibbles(here), load_high(offset(here, 256))), offset(here, 384)
        d, zero = widen(load_f16x16(both, 0)), splat_f32(-ZERO)
        scale, second_scale = d * widen_i8(load_i8x16(constants, 0)), d * widen_i8(load_i8x16(constants, 16))
        store_pairs(out, first_half(weights), scale, scale * zero)
        store_pairs(offset(out, PANEL_UNIT_BYTES // 2), second_half(weights), second_scale, second_scale * zero)
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    constants = offset(weights, 384)
    q = plane_element(weights, 4, row, k) + plane_element(offset(weights, 256), 2, row, k) * 16 - ZERO
    return load_f16(shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES), row) * load_i8(constants, k // 16 * 16 + row) * q


@device
def code(v):
    q = rounded(v, -ZERO, ZERO - 1)
    return q, q


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, most = fit_scales(code, x, 16, 16, 29, 0.25, 21)
        unit = keep_f16(out, 104, most / -128)
        s = fit_whole_scales(code, x, 16, 16, unit, d, -128, 127)
        for i in range(16):
            store_i8(out, 192 + i, int(lane(s, i)))
        for i in range(4):  # two halves of the super-block, two of each unit
            top, low = splat_f32(0), splat_f32(0)
            for place in range(4):
                pair = place % 2 * 2 + place // 2  # units 0, 2, 1, 3: two that share bytes follow each other
                block = i // 2 * 8 + pair * 2 + i % 2
                q = code(load_f32x16(x, block * 16) * splat_f32(reciprocal(unit * lane(s, block))))[0] + splat_f32(ZERO)
                twos, q = bits_above(q, 16)
                top = top + splat_f32(1 << 2 * pair) * twos
                if place % 2:
                    store_nibbles(offset(out, i // 2 * 64 + pair % 2 * 32 + i % 2 * 16), low, q)
                low = q
            store_bytes(offset(out, 128 + i * 16), top)
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
