"""NVFP4: blocks of 16 weights with a float of 8 bits as scale; weight = d / 2 * VALUES[q] with q in 0..15, four blocks together.

d has 4 bits of exponent and 3 of mantissa (e4m3), no sign; its not-a-number counts as zero, as in ggml. VALUES are those of MXFP4,
doubled. Rows may have a factor beside, from a tensor of its own: whoever packs them multiplies what the tile begins with.
File block, 36 bytes: four d, then for each 16 weights 8 bytes whose low nibbles are its first and high nibbles its last 8 weights.
Tile: 16 float32, half the rows' factors; then per unit of 32 weights 16 words four times over, the two blocks' bytes as the file
has them, then 16 d of the first and 16 of the second block.
"""

import numpy as np

from numatp.kernels.activation import half_starts, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import plane_loader, store_words, taken
from numatp.kernels.rows import add_dot_from
from numatp.kernels.simd import (
    lane,
    load_f32x16,
    load_i8x16,
    load_u8,
    offset,
    splat_f32,
    store_f32x16,
    store_u8,
    widen_e4m3,
)
from numatp.quants.mxfp4 import VALUES, ZERO
from numatp.quants.table import FORMATS

FORMAT = FORMATS["NVFP4"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"
HALVES = True
NO_NUMBER = 0x7F  # as a d

load_values = plane_loader(4, 0, table=[int(value) + ZERO for value in VALUES])
# Of the loaded vectors, words 0-3 with low nibbles and then with high ones, those of the first and of the second block in order.
first_block, second_block = taken(0, 1, 4, 5), taken(2, 3, 6, 7)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 36) to float32 (rows, blocks * 64)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    codes = blocks[..., :4].astype(np.int32)
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    d = np.where(exponent > 0, np.ldexp(8 + mantissa, exponent - 11), np.ldexp(mantissa, -10)).astype(np.float32)
    d[codes == NO_NUMBER] = 0
    bytes8 = blocks[..., 4:].reshape(rows, -1, 4, 8)
    q = np.concatenate([bytes8 & 15, bytes8 >> 4], axis=-1)
    return (d[..., None] * VALUES[q].astype(np.float32)).reshape(rows, -1)


@device
def unit_at(tile, unit):
    return offset(tile, HEAD_BYTES + unit * TILE_BYTES)


@device
def pack(source, row_bytes, first_unit, units, tile):
    store_f32x16(tile, 0, splat_f32(0.5))
    for unit in range(units):
        weights, place = unit_at(tile, unit), (first_unit + unit) % 2 * 2
        block = offset(source, (first_unit + unit) // 2 * BLOCK_BYTES)
        store_words(weights, offset(block, 4 + place * 8), row_bytes, 0)
        for row in range(16):
            for i in range(2):
                d = load_u8(block, row * row_bytes + place + i)
                store_u8(weights, 256 + i * 16 + row, 0 if d == NO_NUMBER else d & 127)


@device
def finite(tile, units):
    """All that a block can hold is."""
    return True


@device
def scale_pair(weights, factors):
    return widen_e4m3(load_i8x16(weights, 256)) * factors, widen_e4m3(load_i8x16(weights, 272)) * factors


@device
def dot_tile(tile, x, first, pitch, units, total):
    x_scales, x_starts = offset(scales(x, units * pitch), first * 4), offset(half_starts(x, units * pitch), first * 4)
    x, factors = offset(x, first * 32), load_f32x16(tile, 0)
    tile = unit_at(tile, 0)
    for _ in range(units):
        weights = load_values(tile)
        prefetch_unit(tile, TILE_BYTES)
        d, second_d = scale_pair(tile, factors)
        total = add_dot_from(total, first_block(weights), d, x, x_scales, x_starts)
        total = add_dot_from(total, second_block(weights), second_d, offset(x, 16), x_scales, offset(x_starts, pitch * 4))
        tile, x = offset(tile, TILE_BYTES), offset(x, pitch * 32)
        x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * 8)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here = unit_at(tile, unit)
        weights, zero = load_values(here), splat_f32(-ZERO)
        d, second_d = scale_pair(here, load_f32x16(tile, 0))
        store_pairs(out, first_block(weights), d, d * zero)
        store_pairs(offset(out, PANEL_UNIT_BYTES // 2), second_block(weights), second_d, second_d * zero)
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    weights, k = unit_at(tile, column // 32), column % 16
    second = column % 32 // 16
    word = 2 * second + k % 8 // 4
    q = load_u8(weights, word * 64 + row * 4 + k % 4) >> k // 8 * 4 & 15
    d, second_d = scale_pair(weights, load_f32x16(tile, 0))
    return lane(second_d if second else d, row) * VALUES[q]
