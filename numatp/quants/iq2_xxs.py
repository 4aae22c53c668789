"""IQ2_XXS: super-blocks of 8 x 32 weights; weight = (d * (s + 0.5) / 4) * magnitude * sign with s in 0..15;
each 8 magnitudes that follow each other are an entry of a book of 256.

File block, 66 bytes: float16 d; per unit of 32 weights four indices of 8 bits, then a word with four times seven signs, lowest bits
first (the eighth makes the number of minus signs even), and s above them.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is 16 words of indices (kernels/codebook.py),
then 16 words whose bytes are seven signs and a bit of s, the first byte's lowest.
"""

import numpy as np

from numatp.kernels.codebook import book_loader, sign_giver, spread_signs, top_bits, with_parity
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.simd import fma, load_f16x16, load_i32x16, load_u32, offset, splat_f32, store_u32, to_f32, widen
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_XXS"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 43  # added to every weight, so that none is negative

load_book, with_signs = book_loader(grids.IQ2_XXS, ZERO), sign_giver(ZERO)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 66) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    indices = blocks[..., 2:].reshape(rows, -1, 8, 8)[..., :4]
    words = blocks[..., 2:].reshape(rows, -1, 8, 8)[..., 4:].copy().view(np.uint32)
    scale = d * (np.float32(0.5) + (words[..., 0] >> 28).astype(np.float32)) * np.float32(0.25)
    signs = grids.seven_signs(words >> np.arange(0, 28, 7, dtype=np.uint32) & 127)
    return (scale[..., None, None] * grids.IQ2_XXS[indices].astype(np.float32) * signs).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes + 2 + place * 8)
        store_u32(weights, row, load_u32(own, 0))
        store_u32(weights, 16 + row, spread_signs(own, 4))


@device
def load_unit(weights, both, place):
    words = load_i32x16(weights, 16)
    scale = fma(to_f32(top_bits(words)), splat_f32(0.25), splat_f32(0.125))
    return with_signs(load_book(weights, words), with_parity(words)), widen(load_f16x16(both, 0)) * scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES)
