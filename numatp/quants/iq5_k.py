"""IQ5_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (VALUES[q] + 2 * b) with q in 0..31 and scale in -32..31.

File block, 176 bytes: d, b and scales as in IQ4_K; per pair of units 32 bytes whose low nibbles are the first unit and high
nibbles the second; 32 bytes whose bit i is the highest of unit i.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 times its b. A unit is a plane of 4 bits and one
of 1 (kernels/planes.py), then its scales as in IQ4_K.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.lookup import looker
from numatp.kernels.planes import load_fifth_bits, load_nibbles, merged, store_bit_plane, store_nibble_plane
from numatp.kernels.simd import offset
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.iq3_k import top_bits
from numatp.quants.iq4_k import load_scales, load_steps, scales_of, store_scales
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ5_K"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
VALUES, STEP = np.array([
    -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
    -1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121,
], np.int8), 2  # fmt: skip
ZERO = 128  # added to every weight, so that none is negative

look_up, with_steps = looker(VALUES, ZERO), step_adder((0, 0, 1, 1), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 176) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    q = (fours(blocks[..., 16:144]) | top_bits(blocks[..., 144:]) << 4).reshape(rows, -1, 16, 16)
    values = VALUES[q] + STEP * grids.bits(blocks[..., 2:4])[..., None]
    return (scales_of(blocks)[..., None] * values.astype(np.float32)).reshape(rows, -1)


def fours(packed: np.ndarray) -> np.ndarray:
    """128 bytes to four bits of 8 units of 32 weights."""
    two = packed.reshape(*packed.shape[:-1], 4, 32)
    return np.stack([two & 15, two >> 4], axis=-2).reshape(*packed.shape[:-1], 8, 32)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, 16 + place // 2 * 32), row_bytes, place % 2 * 4)
    store_bit_plane(offset(weights, 256), offset(block, 144), row_bytes, place)
    store_scales(offset(weights, 320), block, row_bytes, place)


@device
def load_unit(weights, both, place):
    values = look_up(merged(load_nibbles(weights), load_fifth_bits(offset(weights, 256))))
    scale, second_scale = load_scales(both, offset(weights, 320))
    return with_steps(values, load_steps(both, place)), scale, second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1))
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
