"""IQ2_KS: rows with one scale; weight = (d * (s - 16)) * (VALUES[q] + 5 * b), VALUES being IQ2_K's, with q in 0..3 and of each
32 weights s in 0..31 and b.

File: before a row's blocks float16 d. Block, 70 bytes: 8 bits, b of each unit; 8 bits, the highest of s of each unit; 4 bytes
with the other bits of s, a unit with an even number in the low and the one behind it in the high nibble; q as in IQ2_K.
Tile: as kernels/row_scales.py has it. A unit is a plane of 2 bits (kernels/planes.py), then 16 bytes, s and above it b.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.planes import store_pair_plane
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.simd import load_i8x16, load_u8, low_bits, offset, splat_f32, store_u8, to_f32, words_of_bytes
from numatp.quants import grids
from numatp.quants.iq2_k import STEP, VALUES, ZERO, load_values, pairs
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_KS"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"

with_steps = step_adder((5, 5, 5, 5), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 2 + blocks * 70) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw[:, 2:].reshape(rows, -1, BLOCK_BYTES)
    s = grids.nibbles(blocks[..., 2:6]) | grids.bits(blocks[..., 1:2]).view(np.uint8) << 4
    values = VALUES[pairs(blocks[..., 6:])] + STEP * grids.bits(blocks[..., :1])[..., None]
    d = raw[:, :2].copy().view(np.float16).astype(np.float32)[..., None]
    return ((d * (s.astype(np.float32) - 16))[..., None] * values.astype(np.float32)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, 6 + place // 4 * 32), row_bytes, place % 4 * 2)
    for row in range(16):
        own = offset(block, row * row_bytes)
        low, high = load_u8(own, 2 + place // 2) >> place % 2 * 4 & 15, load_u8(own, 1) >> place & 1
        store_u8(weights, 128 + row, low | high << 4 | (load_u8(own, 0) >> place & 1) << 5)


@device
def whole_scale(codes):
    """s - 16."""
    return to_f32(low_bits(codes, 5)) - splat_f32(16)


@device
def load_unit(weights, d):
    codes = words_of_bytes(load_i8x16(weights, 128))
    return with_steps(load_values(weights), codes), d * whole_scale(codes)


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 1)  # no float16 is too large
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
