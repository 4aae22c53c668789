"""IQ5_KS: rows with one scale; weight = (d * (2 * s - 127)) * (VALUES[q] + 2 * b), VALUES being IQ5_K's, with q in 0..31 and of
each 32 weights s in 0..127 and b.

File: before a row's blocks float32 d. Block, 168 bytes: for each of its 8 units a byte, b and above it s; then q as in IQ5_K.
Tile: as kernels/row_scales.py has it. A unit is a plane of 4 bits and one of 1 (kernels/planes.py), then 16 bytes of s and b.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.planes import load_fifth_bits, load_nibbles, merged, store_bit_plane, store_nibble_plane
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.simd import load_i8x16, load_u8, offset, store_u8, words_of_bytes
from numatp.quants.iq3_k import top_bits
from numatp.quants.iq4_ks import moved, whole_scale
from numatp.quants.iq5_k import STEP, VALUES, ZERO, fours, look_up
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ5_KS"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"

with_steps = step_adder((0, 0, 0, 0), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 4 + blocks * 168) to float32 (rows, blocks * 256)."""
    blocks = raw[:, 4:].reshape(len(raw), -1, BLOCK_BYTES)
    q = fours(blocks[..., 8:136]) | top_bits(blocks[..., 136:]) << 4
    return moved(raw[:, :4], blocks[..., :8], VALUES[q], STEP)


@device
def store_unit(weights, block, row_bytes, place):
    store_nibble_plane(weights, offset(block, 8 + place // 2 * 32), row_bytes, place % 2 * 4)
    store_bit_plane(offset(weights, 256), offset(block, 136), row_bytes, place)
    for row in range(16):
        store_u8(weights, 320 + row, load_u8(block, row * row_bytes + place))


@device
def load_unit(weights, d):
    codes = words_of_bytes(load_i8x16(weights, 320))
    values = look_up(merged(load_nibbles(weights), load_fifth_bits(offset(weights, 256))))
    return with_steps(values, codes), d * whole_scale(codes)


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 127 * 127)
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
