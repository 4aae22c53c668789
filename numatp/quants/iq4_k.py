"""IQ4_K: super-blocks of 16 x 16 weights; weight = (d * scale) * (VALUES[q] + 4 * b), VALUES being IQ4_NL's, with q in 0..15
and scale in -32..31.

File block, 144 bytes: float16 d; 16 bits, b of each 16 weights; 16 scales + 32 of 6 bits: the high two bits of all, then of all
the low nibbles; per unit 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 times its b. A unit is a plane of 4 bits
(kernels/planes.py), then the scales + 32 of its halves as Q3_K has them: 16 bytes with the low nibbles of the first half's
scales in their low and of the second's in their high nibbles, and 8 bytes with the high two bits of both, rows 0-7 in their low
and rows 8-15 in their high nibbles.
"""

import numpy as np

from numatp.kernels.codebook import step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.planes import store_words
from numatp.kernels.simd import (
    high_nibbles,
    high_twos,
    load_f16x16,
    load_i8x16,
    load_i16x16,
    load_nibbles16,
    load_u8,
    low_nibbles,
    low_twos,
    offset,
    shift_right,
    store_u8,
    widen,
    words_of_halves,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.iq4_nl import VALUES, load_values
from numatp.quants.q3_k import whole_scale
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ4_K"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 128  # added to every weight, so that none is negative
STEP = 4

with_steps = step_adder((0, 0, 1, 1), 0, STEP)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 144) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    bytes16 = blocks[..., 16:].reshape(rows, -1, 8, 16)
    q = np.concatenate([bytes16 & 15, bytes16 >> 4], axis=-1).reshape(rows, -1, 16, 16)
    values = VALUES[q] + STEP * grids.bits(blocks[..., 2:4])[..., None]
    return (scales_of(blocks)[..., None] * values.astype(np.float32)).reshape(rows, -1)


def scales_of(blocks: np.ndarray) -> np.ndarray:
    """float32 (..., 16), with d."""
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    twos = np.stack([blocks[..., 4 + i // 4] >> i % 4 * 2 & 3 for i in range(16)], axis=-1)
    return d * ((grids.nibbles(blocks[..., 8:16]) | twos << 4).astype(np.float32) - 32)


@device
def store_scales(out, block, row_bytes, place):
    """24 bytes, of both halves of the place-th unit."""
    for row in range(16):
        own = offset(block, row * row_bytes)
        store_u8(out, row, load_u8(own, 8 + place))
        twos, shared_byte = load_u8(own, 4 + place // 2) >> place % 2 * 4 & 15, 16 + row % 8
        store_u8(out, shared_byte, load_u8(out, shared_byte) | twos << 4 if row >= 8 else twos)


@device
def load_scales(both, codes):
    """Of the first and of the second 16 columns; codes: what store_scales stored."""
    d, low, high = widen(load_f16x16(both, 0)), load_i8x16(codes, 0), load_nibbles16(codes, 16)
    scale = d * whole_scale(low_nibbles(low), low_twos(high))
    return scale, d * whole_scale(high_nibbles(low), high_twos(high))


@device
def load_steps(both, place):
    """Words whose lowest two bits are b of the place-th unit's halves."""
    return shift_right(words_of_halves(load_i16x16(both, 16)), 2 * place)


@device
def store_unit(weights, block, row_bytes, place):
    store_words(weights, offset(block, 16 + place * 16), row_bytes, 0)
    store_scales(offset(weights, 256), block, row_bytes, place)


@device
def load_unit(weights, both, place):
    scale, second_scale = load_scales(both, offset(weights, 256))
    return with_steps(load_values(weights), load_steps(both, place)), scale, second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0, 1))
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
