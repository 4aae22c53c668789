"""IQ1_S: super-blocks of 8 x 32 weights; weight = (d * (2 * s + 1)) * (value +- 1/8) with s in 0..7;
each 8 values -1, 0, 1 that follow each other are an entry of a book of 2048.

File block, 50 bytes: float16 d; for each 8 weights the low 8 bits of an index; per unit of 32 weights 16 bits: the high three bits
of its four indices, the lowest first, three of s, and on top whether 1/8 is taken off.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is 16 words of the indices' low bits
(kernels/codebook.py), then the 16 bits of each row. Weights are whole in eighths.
"""

import numpy as np

from numatp.kernels.codebook import book_loader, step_adder
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.simd import (
    fma,
    load_f16x16,
    load_i16,
    load_i16x16,
    load_u32,
    low_bits,
    offset,
    shift_right,
    splat_f32,
    store_i16,
    store_u32,
    to_f32,
    widen,
    words_of_halves,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ1_S"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 9  # added to every weight in eighths, so that none is negative

load_book, with_steps = book_loader(8 * grids.IQ1_S, ZERO, high=(0, 3, 6, 9)), step_adder((15, 15, 15, 15))


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 50) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    words = blocks[..., 34:].copy().view(np.uint16)
    indices = blocks[..., 2:34].reshape(rows, -1, 8, 4) | (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7) << 8
    scale = d * (2 * (words >> 12 & 7) + 1)
    step = np.where(words >> 15, np.float32(-0.125), np.float32(0.125))
    values = grids.IQ1_S[indices].astype(np.float32)
    return (scale[..., None, None] * (values + step[..., None, None])).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes + 2)
        store_u32(weights, row, load_u32(own, place))
        store_i16(weights, 32 + row, load_i16(own, 16 + place))


@device
def load_unit(weights, both, place):
    words = words_of_halves(load_i16x16(weights, 32))
    scale = fma(to_f32(low_bits(shift_right(words, 12), 3)), splat_f32(0.25), splat_f32(0.125))
    return with_steps(load_book(weights, words), words), widen(load_f16x16(both, 0)) * scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES)
