"""IQ6_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (VALUES[q] + b) with q in 0..63 and scale in -128..127.

VALUES are the whole numbers that ik_llama.cpp multiplies with; where it makes floats of the format it takes a polynomial
instead, of which they are the nearest whole numbers.
File block, 212 bytes: float16 d; 16 bits, b of each 16 weights; 16 scales as int8; per pair of units 32 bytes whose low nibbles
are the first unit and high nibbles the second; for each half of 128 weights 32 bytes with the high two bits of each of its four
units.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 times its b. A unit is a plane of 4 bits and one
of 2 (kernels/planes.py), then 16 scales of its first and 16 of its second half.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.lookup import looker
from numatp.kernels.planes import load_nibbles, merged, plane_loader, store_nibble_plane, store_pair_plane
from numatp.kernels.simd import load_f16x16, load_i8, load_i8x16, offset, store_i8, widen, widen_i8
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.iq2_k import pairs
from numatp.quants.iq4_k import load_steps
from numatp.quants.iq5_k import fours
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ6_K"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
VALUES, STEP = np.array([
    -127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54,
    -51, -47, -44, -40, -37, -34, -31, -28, -25, -22, -19, -16, -13, -11, -8, -5,
    -2, 0, 3, 6, 9, 12, 14, 17, 20, 23, 27, 30, 33, 36, 40, 44,
    47, 51, 55, 59, 63, 68, 72, 77, 82, 87, 92, 98, 103, 109, 115, 121,
], np.int8), 1  # fmt: skip
ZERO = 128  # added to every weight, so that none is negative

look_up, with_steps, load_high = looker(VALUES, ZERO), step_adder((0, 0, 1, 1), 0, STEP), plane_loader(2, 4)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 212) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    scale = d * blocks[..., 4:20].view(np.int8).astype(np.float32)
    q = (fours(blocks[..., 20:148]) | pairs(blocks[..., 148:]) << 4).reshape(rows, -1, 16, 16)
    values = VALUES[q] + STEP * grids.bits(blocks[..., 2:4])[..., None]
    return (scale[..., None] * values.astype(np.float32)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, 20 + place // 2 * 32), row_bytes, place % 2 * 4)
    store_pair_plane(offset(weights, 256), offset(block, 148 + place // 4 * 32), row_bytes, place % 4 * 2)
    for row in range(16):
        store_i8(weights, 384 + row, load_i8(block, row * row_bytes + 4 + 2 * place))
        store_i8(weights, 400 + row, load_i8(block, row * row_bytes + 5 + 2 * place))


@device
def load_unit(weights, both, place):
    values = look_up(merged(load_nibbles(weights), load_high(offset(weights, 256))))
    d = widen(load_f16x16(both, 0))
    scale, second_scale = d * widen_i8(load_i8x16(weights, 384)), d * widen_i8(load_i8x16(weights, 400))
    return with_steps(values, load_steps(both, place)), scale, second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1))
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
