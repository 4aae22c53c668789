"""F32: plain float32, taken as blocks of 32 weights. Tile: 32 columns of 16 rows, column after column."""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.finite import values_finite
from numatp.kernels.rows import add_outer
from numatp.kernels.simd import load_f32, load_f32x16, offset, store_f32
from numatp.quants.table import FORMATS, UNIT

UNIT_BYTES = FORMATS["F32"].bytes_of(UNIT)  # in the file
ACTIVATION, ZERO = "f32", 0


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, columns * 4) to float32 (rows, columns)."""
    return np.ascontiguousarray(raw).view(np.float32).astype(np.float32)


@device
def pack(source, row_bytes, first_unit, units, tile):
    for row in range(16):
        values = offset(source, row * row_bytes + first_unit * UNIT_BYTES)
        for k in range(units * 32):
            store_f32(tile, k * 16 + row, load_f32(values, k))


@device
def values_at(tile, k):
    """Those of 16 rows in the k-th column, as float32."""
    return load_f32x16(tile, k * 16)


finite, expand = values_finite(values_at), None  # plain numbers are multiplied in float32


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    x = offset(x, first * 4)
    for k in range(begin * 32, end * 32):
        total = add_outer(total, values_at(tile, k), offset(x, k * pitch * 4))
    return total


@device
def element(tile, units, row, column):
    return load_f32(tile, column * 16 + row)


@device
def quantize(x, columns, out):
    for k in range(columns):
        store_f32(out, k, load_f32(x, k))
