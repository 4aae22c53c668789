"""NVFP4: blocks of 16 weights with a float of 8 bits as scale; weight = d / 2 * VALUES[q] with q in 0..15, four blocks together.

d has 4 bits of exponent and 3 of mantissa (e4m3), no sign; its not-a-number counts as zero, as in ggml. VALUES are those of MXFP4,
doubled. Rows may have a factor beside, from a tensor of its own: whoever packs them multiplies what the tile begins with.
File block, 36 bytes: four d, then for each 16 weights 8 bytes whose low nibbles are its first and high nibbles its last 8 weights.
Tile: 16 float32, half the rows' factors; then per unit of 32 weights 16 words four times over, the two blocks' bytes as the file
has them, then 16 d of the first and 16 of the second block.
"""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.planes import plane_loader, store_words, taken
from numatp.kernels.row_scales import products
from numatp.kernels.simd import load_i8x16, load_u8, offset, splat_f32, store_f32x16, store_u8, widen_e4m3
from numatp.quants.mxfp4 import VALUES, ZERO
from numatp.quants.table import FORMATS

FORMAT = FORMATS["NVFP4"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"
HALVES = True
NO_NUMBER = 0x7F  # as a d

load_values = plane_loader(4, 0, table=[int(value) + ZERO for value in VALUES])
in_order = taken(0, 1, 4, 5, 2, 3, 6, 7)  # of the loaded vectors, words 0-3 with low nibbles and then with high ones


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
def pack(source, row_bytes, first_unit, units, tile):
    store_f32x16(tile, 0, splat_f32(0.5))
    for unit in range(units):
        weights, place = offset(tile, HEAD_BYTES + unit * TILE_BYTES), (first_unit + unit) % 2 * 2
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
def load_unit(weights, factors):
    d, second_d = widen_e4m3(load_i8x16(weights, 256)) * factors, widen_e4m3(load_i8x16(weights, 272)) * factors
    return in_order(load_values(weights)), d, second_d


dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES, halves=True)
