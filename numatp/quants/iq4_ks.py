"""IQ4_KS: rows with one scale; weight = (d * (2 * s - 127)) * (VALUES[q] + 4 * b), VALUES being IQ4_NL's, with q in 0..15 and
of each 32 weights s in 0..127 and b.

File: before a row's blocks float32 d. Block, 136 bytes: for each of its 8 units a byte, b and above it s; per unit 16 bytes
whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: as kernels/row_scales.py has it. A unit is a plane of 4 bits (kernels/planes.py), then 16 bytes of s and b.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.planes import store_words
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.simd import fma, load_i8x16, load_u8, offset, shift_right, splat_f32, store_u8, to_f32, words_of_bytes
from numatp.quants.iq4_k import STEP
from numatp.quants.iq4_nl import VALUES, load_values
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ4_KS"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"
ZERO = 128  # added to every weight, so that none is negative

with_steps = step_adder((0, 0, 0, 0), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 4 + blocks * 136) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw[:, 4:].reshape(rows, -1, BLOCK_BYTES)
    bytes16 = blocks[..., 8:].reshape(rows, -1, 8, 16)
    q = np.concatenate([bytes16 & 15, bytes16 >> 4], axis=-1)
    return moved(raw[:, :4], blocks[..., :8], VALUES[q], STEP)


def moved(d: np.ndarray, codes: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
    """float32 (rows, columns); d: the rows' first 4 bytes, codes: s and b (rows, blocks, 8), values (rows, blocks, 8, 32)."""
    scale = d.copy().view(np.float32)[..., None] * ((codes & 254).astype(np.float32) - 127)
    values = values + step * (codes & 1).astype(np.int8)[..., None]
    return (scale[..., None] * values.astype(np.float32)).reshape(len(d), -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_words(weights, offset(block, 8 + place * 16), row_bytes, 0)
    for row in range(16):
        store_u8(weights, 256 + row, load_u8(block, row * row_bytes + place))


@device
def whole_scale(codes):
    """2 * s - 127."""
    return fma(to_f32(shift_right(codes, 1)), splat_f32(2), splat_f32(-127))


@device
def load_unit(weights, d):
    codes = words_of_bytes(load_i8x16(weights, 256))
    return with_steps(load_values(weights), codes), d * whole_scale(codes)


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 127 * 127)
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
