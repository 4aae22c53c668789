"""IQ2_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (VALUES[q] + 5 * b) with q in 0..3 and scale in -8..7.

File block, 76 bytes: float16 d; 16 bits, b of each 16 weights; 8 bytes, scale + 8 of a unit's first 16 weights in the low and
of its second 16 in the high nibble; for each half of 128 weights 32 bytes with two bits of each of its four units.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 times its b. A unit is a plane of 2 bits
(kernels/planes.py), then 16 of the file's bytes of scales.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.lookup import padded
from numatp.kernels.planes import plane_loader, store_pair_plane
from numatp.kernels.simd import (
    high_nibbles,
    load_f16x16,
    load_i8x16,
    load_i16x16,
    load_u8,
    low_nibbles,
    offset,
    shift_right,
    splat_f32,
    store_u8,
    widen,
    widen_u8,
    words_of_halves,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_K"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
VALUES, STEP = np.array([-31, -13, 1, 17], np.int8), 5
ZERO = 31  # added to every weight, so that none is negative

load_values, with_steps = plane_loader(2, 0, table=padded(VALUES, ZERO)), step_adder((0, 0, 1, 1), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 76) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    scale = d * (grids.nibbles(blocks[..., 4:12]).astype(np.float32) - 8)
    q = pairs(blocks[..., 12:]).reshape(rows, -1, 16, 16)
    values = VALUES[q] + STEP * grids.bits(blocks[..., 2:4])[..., None]
    return (scale[..., None] * values.astype(np.float32)).reshape(rows, -1)


def pairs(packed: np.ndarray) -> np.ndarray:
    """64 bytes to the two bits of 8 units of 32 weights."""
    halves = packed.reshape(*packed.shape[:-1], 2, 32)
    return np.stack([halves >> 2 * unit & 3 for unit in range(4)], axis=-2).reshape(*packed.shape[:-1], 8, 32)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, 12 + place // 4 * 32), row_bytes, place % 4 * 2)
    for row in range(16):
        store_u8(weights, 128 + row, load_u8(block, row * row_bytes + 4 + place))


@device
def load_unit(weights, both, place):
    d, codes = widen(load_f16x16(both, 0)), load_i8x16(weights, 128)
    steps = shift_right(words_of_halves(load_i16x16(both, 16)), 2 * place)
    scale, second_scale = widen_u8(low_nibbles(codes)) - splat_f32(8), widen_u8(high_nibbles(codes)) - splat_f32(8)
    return with_steps(load_values(weights), steps), d * scale, d * second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1))
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
