"""IQ3_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (VALUES[q] + 4 * b) with q in 0..7, scale = +-(2 * s + 1) and
s in 0..15.

File block, 110 bytes: float16 d; 16 bits, b of each 16 weights; 16 bits, whether the scale of each 16 weights is negative; 8
bytes, s of a unit's first 16 weights in the low and of its second 16 in the high nibble; for each half of 128 weights 32 bytes
with the low two bits of each of its four units; 32 bytes whose bit i is the highest of unit i.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, 16 times its b and 16 times its signs. A unit is a plane
of 2 bits and one of 1 (kernels/planes.py), then 16 of the file's bytes of s.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.lookup import looker
from numatp.kernels.planes import merged, plane_loader, store_bit_plane, store_pair_plane
from numatp.kernels.simd import (
    fma,
    high_nibbles,
    load_f16x16,
    load_i8x16,
    load_i16x16,
    load_u8,
    low_bits,
    low_nibbles,
    offset,
    shift_right,
    splat_f32,
    store_u8,
    to_f32,
    widen,
    widen_u8,
    words_of_halves,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.iq2_k import pairs
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ3_K"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
VALUES, STEP = np.array([-63, -40, -23, -10, 1, 13, 28, 47], np.int8), 4
ZERO = 63  # added to every weight, so that none is negative

load_pairs, load_third_bits, look_up = plane_loader(2, 0), plane_loader(1, 2), looker(VALUES, ZERO)
with_steps = step_adder((0, 0, 1, 1), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 110) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    signs = 1 - 2 * grids.bits(blocks[..., 4:6])
    scale = d * ((2 * grids.nibbles(blocks[..., 6:14]).astype(np.int8) + 1) * signs).astype(np.float32)
    q = (pairs(blocks[..., 14:78]) | top_bits(blocks[..., 78:]) << 2).reshape(rows, -1, 16, 16)
    values = VALUES[q] + STEP * grids.bits(blocks[..., 2:4])[..., None]
    return (scale[..., None] * values.astype(np.float32)).reshape(rows, -1)


def top_bits(packed: np.ndarray) -> np.ndarray:
    """32 bytes, of which bit i belongs to unit i, to one bit of 8 units of 32 weights."""
    return np.stack([packed >> unit & 1 for unit in range(8)], axis=-2)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, 14 + place // 4 * 32), row_bytes, place % 4 * 2)
    store_bit_plane(offset(weights, 128), offset(block, 78), row_bytes, place)
    for row in range(16):
        store_u8(weights, 192 + row, load_u8(block, row * row_bytes + 6 + place))


@device
def signed(magnitude, bits):
    """-(2 * magnitude + 1) where the lowest of the bits is set, else without the minus."""
    sign = fma(to_f32(low_bits(bits, 1)), splat_f32(-2), splat_f32(1))
    return fma(widen_u8(magnitude), splat_f32(2), splat_f32(1)) * sign


@device
def load_unit(weights, both, place):
    d, codes = widen(load_f16x16(both, 0)), load_i8x16(weights, 192)
    steps = shift_right(words_of_halves(load_i16x16(both, 16)), 2 * place)
    signs = shift_right(words_of_halves(load_i16x16(both, 32)), 2 * place)
    scale, second_scale = signed(low_nibbles(codes), signs), signed(high_nibbles(codes), shift_right(signs, 1))
    values = look_up(merged(load_pairs(weights), load_third_bits(offset(weights, 128))))
    return with_steps(values, steps), d * scale, d * second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1, 2))
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
