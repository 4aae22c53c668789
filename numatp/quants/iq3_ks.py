"""IQ3_KS: rows with one scale; weight = (d * (s - 16)) * (VALUES[q] + 4 * b), VALUES being IQ3_K's, with q in 0..7 and of each
32 weights s in 0..31 and b.

File: before a row's blocks float16 d. Block, 102 bytes: 8 bits, the highest of s of each unit; 8 bits, b of each unit; 4 bytes
with the other bits of s, units 0-3 in the low and units 4-7 in the high nibbles; q as in IQ3_K.
Tile: as kernels/row_scales.py has it. A unit is a plane of 2 bits and one of 1 (kernels/planes.py), then 16 bytes, s and above
it b.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.planes import merged, store_bit_plane, store_pair_plane
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.simd import load_i8x16, load_u8, offset, store_u8, words_of_bytes
from numatp.quants import grids
from numatp.quants.iq2_k import pairs
from numatp.quants.iq2_ks import whole_scale
from numatp.quants.iq3_k import STEP, VALUES, ZERO, load_pairs, load_third_bits, look_up, top_bits
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ3_KS"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"

with_steps = step_adder((5, 5, 5, 5), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 2 + blocks * 102) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw[:, 2:].reshape(rows, -1, BLOCK_BYTES)
    low = np.concatenate([blocks[..., 2:6] & 15, blocks[..., 2:6] >> 4], axis=-1)
    s = low | grids.bits(blocks[..., :1]).view(np.uint8) << 4
    q = pairs(blocks[..., 6:70]) | top_bits(blocks[..., 70:]) << 2
    values = VALUES[q] + STEP * grids.bits(blocks[..., 1:2])[..., None]
    d = raw[:, :2].copy().view(np.float16).astype(np.float32)[..., None]
    return ((d * (s.astype(np.float32) - 16))[..., None] * values.astype(np.float32)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, 6 + place // 4 * 32), row_bytes, place % 4 * 2)
    store_bit_plane(offset(weights, 128), offset(block, 70), row_bytes, place)
    for row in range(16):
        own = offset(block, row * row_bytes)
        low, high = load_u8(own, 2 + place % 4) >> place // 4 * 4 & 15, load_u8(own, 0) >> place & 1
        store_u8(weights, 192 + row, low | high << 4 | (load_u8(own, 1) >> place & 1) << 5)


@device
def load_unit(weights, d):
    codes = words_of_bytes(load_i8x16(weights, 192))
    values = look_up(merged(load_pairs(weights), load_third_bits(offset(weights, 128))))
    return with_steps(values, codes), d * whole_scale(codes)


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 1)  # no float16 is too large
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
