"""IQ2_XS: super-blocks of 16 x 16 weights; weight = (d * (s + 0.5) / 4) * magnitude * sign with s in 0..15;
each 8 magnitudes that follow each other are an entry of a book of 512.

File block, 74 bytes: float16 d; for each 8 weights 16 bits, an index of 9 and seven signs above it (the eighth makes the number of
minus signs even); per unit of 32 weights a byte, s of its first 16 in the low nibble.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is 16 words of the indices' low bits
(kernels/codebook.py), 16 words whose bytes are seven signs and the index's highest bit, then 16 bytes of scales.
"""

import numpy as np

from numatp.kernels.codebook import book_loader, half_scales, sign_giver, with_parity
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.simd import load_f16x16, load_i8x16, load_i32x16, load_u8, offset, store_u8, widen
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_XS"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 43  # added to every weight, so that none is negative

load_book, with_signs = book_loader(grids.IQ2_XS, ZERO, high=(7, 15, 23, 31)), sign_giver(ZERO)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 74) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    codes = blocks[..., 2:66].copy().view(np.uint16).reshape(rows, -1, 16, 2)
    scale = d * (np.float32(0.5) + grids.nibbles(blocks[..., 66:])) * np.float32(0.25)
    magnitudes = grids.IQ2_XS[codes & 511].astype(np.float32)
    return (scale[..., None, None] * magnitudes * grids.seven_signs(codes >> 9)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes + 2)
        for group in range(4):
            high = load_u8(own, place * 8 + group * 2 + 1)
            store_u8(weights, row * 4 + group, load_u8(own, place * 8 + group * 2))
            store_u8(weights, 64 + row * 4 + group, high >> 1 | (high & 1) << 7)
        store_u8(weights, 128 + row, load_u8(own, 64 + place))


@device
def load_unit(weights, both, place):
    words = load_i32x16(weights, 16)
    scale, second_scale = half_scales(widen(load_f16x16(both, 0)), load_i8x16(weights, 128))
    return with_signs(load_book(weights, words), with_parity(words)), scale, second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
