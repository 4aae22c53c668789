"""IQ1_M: super-blocks of 16 x 16 weights; weight = (d * (2 * s + 1)) * (value +- 1/8) with s in 0..7;
each 8 values -1, 0, 1 that follow each other are an entry of IQ1_S's book.

File block, 56 bytes: for each 8 weights the low 8 bits of an index; for each 8 weights a nibble, the index's high three bits and on
top whether 1/8 is taken off; for each 64 weights 16 bits, three for s of each 16 weights, and on top a nibble of a float16 d, the
lowest first.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, then 16 bits of each row, two for each unit: the high bits
of its second s. A unit is 16 words of the indices' low bits (kernels/codebook.py), 16 bits of each row with their high bits, and 8
bytes, rows 0-7 in the low and rows 8-15 in the high nibbles: the first s, and the lowest bit of the second. Weights are whole in
eighths.
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
    load_nibbles16,
    load_u8,
    load_u32,
    low_bits,
    offset,
    shift_right,
    splat_f32,
    store_i16,
    store_u8,
    store_u32,
    to_f32,
    widen,
    words_of_bytes,
    words_of_halves,
)
from numatp.kernels.superblock import products, sharing_packer
from numatp.quants import grids
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ1_M"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
HALVES = True
ZERO = 9  # added to every weight in eighths, so that none is negative

load_book, with_steps = book_loader(8 * grids.IQ1_S, ZERO, high=(0, 4, 8, 12)), step_adder((3, 7, 11, 15))


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 56) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    words = blocks[..., 48:].copy().view(np.uint16)
    parts = words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    d = np.bitwise_or.reduce(parts, axis=-1, keepdims=True).view(np.float16).astype(np.float32)
    scale = d * (2 * (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(rows, -1, 16) + 1)
    nibbles = grids.nibbles(blocks[..., 32:48])
    indices = blocks[..., :32] | (nibbles & 7).astype(np.uint16) << 8
    values = grids.IQ1_S[indices].astype(np.float32).reshape(rows, -1, 16, 2, 8)
    step = np.where(nibbles >> 3, np.float32(-0.125), np.float32(0.125)).reshape(rows, -1, 16, 2, 1)
    return (scale[..., None, None] * (values + step)).reshape(rows, -1)


@device
def two_scales(own, place):
    """Six bits, both s of a unit."""
    return load_i16(own, 24 + place // 2) >> place % 2 * 6 & 63


@device
def store_shared(both, block, row_bytes):
    for row in range(16):
        own = offset(block, row * row_bytes)
        d, high = 0, 0
        for i in range(4):
            d |= (load_i16(own, 24 + i) >> 12 & 15) << 4 * i
        for place in range(8):
            high |= two_scales(own, place) >> 4 << 2 * place
        store_i16(both, row, d)
        store_i16(both, 16 + row, high)


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own = offset(block, row * row_bytes)
        store_u32(weights, row, load_u32(own, place))
        store_i16(weights, 32 + row, load_i16(own, 16 + place))
        low, shared_byte = two_scales(own, place) & 15, 96 + row % 8
        store_u8(weights, shared_byte, load_u8(weights, shared_byte) | low << 4 if row >= 8 else low)


@device
def load_unit(weights, both, place):
    d, words, low = (
        widen(load_f16x16(both, 0)),
        words_of_halves(load_i16x16(weights, 32)),
        words_of_bytes(load_nibbles16(weights, 96)),
    )
    high = low_bits(shift_right(words_of_halves(load_i16x16(both, 16)), 2 * place), 2)
    first, second = to_f32(low_bits(low, 3)), fma(to_f32(high), splat_f32(2), to_f32(shift_right(low, 3)))
    eighth, quarter = splat_f32(0.125), splat_f32(0.25)
    return with_steps(load_book(weights, words), words), d * fma(first, quarter, eighth), d * fma(second, quarter, eighth)


pack = sharing_packer(store_unit, store_shared, BLOCK_BYTES, SUPER_BYTES, TILE_BYTES)
finite = supers_finite(SUPER_BYTES, TILE_BYTES, halves=1)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES, halves=True)
