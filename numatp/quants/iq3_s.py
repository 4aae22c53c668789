"""IQ3_S: super-blocks of 8 x 32 weights; weight = (d * (2 * s + 1)) * magnitude * sign with s in 0..15;
each 4 magnitudes that follow each other are an entry of a book of 512.

File block, 110 bytes: float16 d; for each 4 weights the low 8 bits of an index; per unit of 32 weights a byte with the highest bits
of its eight indices; for each 8 weights their signs; for each two units a byte, s of the first in the low nibble.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is twice 16 words of the indices' low bits
(kernels/codebook.py), 16 words of signs, 16 bytes of the indices' highest bits, then 8 bytes of scales, rows 0-7 in the low and
rows 8-15 in the high nibbles.
"""

import numpy as np

from numatp.kernels.codebook import book_loader, sign_giver
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.simd import (
    fma,
    load_f16x16,
    load_i8x16,
    load_i32x16,
    load_nibbles16,
    load_u8,
    load_u32,
    offset,
    splat_f32,
    store_u8,
    store_u32,
    widen,
    widen_u8,
    words_of_bytes,
)
from numatp.kernels.superblock import packer, products
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ3_S"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 15  # added to every weight, so that none is negative

load_book, with_signs = book_loader(grids.IQ3_S, ZERO, high=range(8)), sign_giver(ZERO)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 110) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    high = blocks[..., 66:74, None] >> np.arange(8, dtype=np.uint8) & 1
    indices = blocks[..., 2:66].reshape(high.shape) | high.astype(np.uint16) << 8
    scale = d * (1 + 2 * grids.nibbles(blocks[..., 106:]))
    magnitudes = grids.IQ3_S[indices].astype(np.float32).reshape(rows, -1, 8, 4, 8)
    signs = grids.signs_of(blocks[..., 74:106]).reshape(magnitudes.shape)
    return (scale[..., None, None] * magnitudes * signs).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes + 2)
        store_u32(weights, row, load_u32(own, 2 * place))
        store_u32(weights, 16 + row, load_u32(own, 2 * place + 1))
        store_u32(weights, 32 + row, load_u32(own, 18 + place))
        store_u8(weights, 192 + row, load_u8(own, 64 + place))
        scale, shared_byte = load_u8(own, 104 + place // 2) >> place % 2 * 4 & 15, 208 + row % 8
        store_u8(weights, shared_byte, load_u8(weights, shared_byte) | scale << 4 if row >= 8 else scale)


@device
def load_unit(weights, both, place):
    magnitudes = load_book(weights, words_of_bytes(load_i8x16(weights, 192)))
    scale = fma(widen_u8(load_nibbles16(weights, 208)), splat_f32(2), splat_f32(1))
    return with_signs(magnitudes, load_i32x16(weights, 32)), widen(load_f16x16(both, 0)) * scale


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (0,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES)
