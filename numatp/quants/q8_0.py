"""Q8_0: blocks of 32 weights with a float16 scale d; weight = d * q with q in -128..127.

File block, 34 bytes: d, then 32 int8.
Tile: per block 8 vectors of 64 bytes, vector j holding q + 128 for columns 4j..4j+3 of each of the 16 rows (the dot product
takes unsigned weights); behind all blocks, per block 16 d.
"""

import numpy as np

from numatp.kernels.activation import integer_sums, scales
from numatp.kernels.compile import device
from numatp.kernels.dot import dot_u8s8
from numatp.kernels.simd import (
    fma,
    load_f16,
    load_f16x16,
    load_f32,
    load_i8x4_splat,
    load_i8x64,
    load_i32,
    load_u8,
    offset,
    prefetch,
    splat_f32,
    splat_i32,
    store_f16,
    store_i32,
    to_f32,
    widen,
)

BLOCK, BLOCK_BYTES = 32, 34
TILE_BYTES = 16 * BLOCK_BYTES
ACTIVATION = "q8"
PREFETCH = 4096  # bytes ahead
SIGNS = -0x7F7F7F80  # 0x80808080 as int32: flips the sign bit of four bytes, which adds 128 to each


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 34) to float32 (rows, blocks * 32)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    return (d * blocks[..., 2:].view(np.int8).astype(np.float32)).reshape(rows, -1)


@device
def pack(source, row_bytes, rows, first_unit, units, tile):
    constants = offset(tile, units * 512)
    for row in range(16):
        block = offset(source, row * row_bytes + first_unit * BLOCK_BYTES)
        for unit in range(units):
            if row < rows:
                store_f16(constants, unit * 16 + row, load_f16(block, 0))
                for j in range(8):
                    store_i32(tile, unit * 128 + j * 16 + row, load_i32(offset(block, 2), j) ^ SIGNS)
            else:
                store_f16(constants, unit * 16 + row, 0)
            block = offset(block, BLOCK_BYTES)


@device
def dot_tile(tile, x, units):
    x_scales, x_sums = scales(x, units), integer_sums(x, units)
    constants = offset(tile, units * 512)
    total = splat_f32(0)
    for unit in range(units):
        # Starting at -128 * sum(x) takes back the 128 that every weight carries.
        even, odd = splat_i32(-128 * load_i32(x_sums, unit)), splat_i32(0)
        for j in range(4):
            even = dot_u8s8(even, load_i8x64(tile, j * 128), load_i8x4_splat(x, j * 8))
            odd = dot_u8s8(odd, load_i8x64(tile, j * 128 + 64), load_i8x4_splat(x, j * 8 + 4))
            prefetch(tile, PREFETCH + j * 128)
            prefetch(tile, PREFETCH + j * 128 + 64)
        d = widen(load_f16x16(constants, 0))
        total = fma(d, to_f32(even + odd) * splat_f32(load_f32(x_scales, unit)), total)
        tile, constants, x = offset(tile, 512), offset(constants, 32), offset(x, 32)
    return total


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    q = load_u8(tile, unit * 512 + k // 4 * 64 + row * 4 + k % 4)
    return load_f16(offset(tile, units * 512 + unit * 32), row) * (q - 128)
