"""IQ2_S: super-blocks of 16 x 16 weights; weight = (d * (s + 0.5) / 4) * magnitude * sign with s in 0..15;
each 8 magnitudes that follow each other are an entry of a book of 1024.

File block, 82 bytes: float16 d; for each 8 weights the low 8 bits of an index; for each 8 weights their signs; per unit of 32
weights a byte with the high two bits of its four indices; per unit a byte, s of its first 16 weights in the low nibble.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is 16 words of the indices' low bits
(kernels/codebook.py), 16 words of signs, 16 bytes of the indices' high bits, then 16 bytes of scales.
"""

import numpy as np

from numatp.kernels.codebook import book_loader, half_scales, sign_giver
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.simd import (
    load_f16x16,
    load_i8x16,
    load_i32x16,
    load_u8,
    load_u32,
    offset,
    store_u8,
    store_u32,
    widen,
    words_of_bytes,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_S"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 43  # added to every weight, so that none is negative

load_book, with_signs = book_loader(grids.IQ2_S, ZERO, high=(0, 2, 4, 6)), sign_giver(ZERO)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 82) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    high = blocks[..., 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    indices = blocks[..., 2:34].reshape(high.shape) | high.astype(np.uint16) << 8
    scale = d * (np.float32(0.5) + grids.nibbles(blocks[..., 74:])) * np.float32(0.25)
    magnitudes = grids.IQ2_S[indices].astype(np.float32).reshape(rows, -1, 16, 2, 8)
    signs = grids.signs_of(blocks[..., 34:66]).reshape(magnitudes.shape)
    return (scale[..., None, None] * magnitudes * signs).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes + 2)
        store_u32(weights, row, load_u32(own, place))
        store_u32(weights, 16 + row, load_u32(own, 8 + place))
        store_u8(weights, 128 + row, load_u8(own, 64 + place))
        store_u8(weights, 144 + row, load_u8(own, 72 + place))


@device
def load_unit(weights, both, place):
    scale, second_scale = half_scales(widen(load_f16x16(both, 0)), load_i8x16(weights, 144))
    magnitudes = load_book(weights, words_of_bytes(load_i8x16(weights, 128)))
    return with_signs(magnitudes, load_i32x16(weights, 16)), scale, second_scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
