"""BF16: the upper half of a float32, taken as blocks of 32 weights. Tile: 32 columns of 16 rows, column after column."""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.finite import values_finite
from numatp.kernels.rows import add_outer
from numatp.kernels.simd import float_of_upper_half, load_i16, load_i16x16, load_i32, offset, store_i16, widen_upper_halves
from numatp.quants.table import FORMATS, UNIT

UNIT_BYTES = FORMATS["BF16"].bytes_of(UNIT)  # in the file
ACTIVATION, ZERO = "f32", 0


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, columns * 2) to float32 (rows, columns)."""
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for row in range(16):
        values = offset(source, row * row_bytes + first_unit * UNIT_BYTES)
        for k in range(units * 32):
            store_i16(tile, k * 16 + row, load_i16(values, k))


@device
def values_at(tile, k):
    """Those of 16 rows in the k-th column, as float32."""
    return widen_upper_halves(load_i16x16(tile, k * 16))


finite, expand = values_finite(values_at), None  # plain numbers are multiplied in float32


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    x = offset(x, first * 4)
    for k in range(begin * 32, end * 32):
        total = add_outer(total, values_at(tile, k), offset(x, k * pitch * 4))
    return total


@device
def element(tile, units, row, column):
    return float_of_upper_half(load_i16(tile, column * 16 + row))


@device
def quantize(x, columns, out):
    for k in range(columns):
        bits = load_i32(x, k)
        store_i16(out, k, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # to the nearest, of two the even one
