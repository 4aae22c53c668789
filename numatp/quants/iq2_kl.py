"""IQ2_KL: rows with one scale; each two weights that follow each other are (d * scale) times an entry of a book of 32 pairs,
scale of each 32 weights in -32..31.

File: before a row's blocks float16 d. Block, 86 bytes: 8 scales + 32 of 6 bits: 16 bits with the high two bits of all, then 4
bytes with the others, units 0-3 in the low and units 4-7 in the high nibbles; per two units 16 bytes with the low four bits of
the 16 indices of the first in the low and of the second in the high nibbles; 16 bytes whose bit i is the highest of unit i's
indices.
Tile: as kernels/row_scales.py has it. A unit is four vectors of indices: vector v has for each four rows 16 bytes, of each row
the indices 4 v and 4 v + 1, then of each row the two others. Of the low four bits 64 bytes hold vector 0 in their low and
vector 2 in their high nibbles, and 64 bytes vectors 1 and 3; 64 highest bits of each vector follow, then 16 scales as int8.
"""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import intrinsic, ir
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.rows import Vectors
from numatp.kernels.simd import (
    INT32,
    INT64,
    constant,
    i8x64,
    llvm_type,
    load_i8x16,
    load_u8,
    offset,
    pointer,
    store_i8,
    store_u8,
    widen_i8,
)
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ2_KL"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"
BOOK = np.array([
    (-63, -23), (-63, 13), (-40, -63), (-40, -10), (-40, 13), (-40, 47), (-23, -40), (-23, -23),
    (-23, 1), (-23, 13), (-23, 28), (-10, -63), (-10, 1), (-10, 13), (-10, 47), (1, -23),
    (1, -10), (1, 1), (1, 13), (1, 28), (13, -40), (13, -23), (13, -10), (13, 1),
    (13, 13), (28, -63), (28, -23), (28, 1), (28, 28), (28, 47), (47, -23), (47, 13),
], np.int8)  # fmt: skip
ZERO = 63  # added to every weight, so that none is negative


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 2 + blocks * 86) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw[:, 2:].reshape(rows, -1, BLOCK_BYTES)
    low = np.concatenate([blocks[..., 2:6] & 15, blocks[..., 2:6] >> 4], axis=-1)
    twos = np.stack([blocks[..., unit // 4] >> unit % 4 * 2 & 3 for unit in range(8)], axis=-1)
    scale = (low | twos << 4).astype(np.float32) - 32
    bytes16 = blocks[..., 6:70].reshape(rows, -1, 4, 16)
    indices = np.stack([bytes16 & 15, bytes16 >> 4], axis=-2).reshape(rows, -1, 8, 16)
    indices |= np.stack([blocks[..., 70:] >> unit & 1 for unit in range(8)], axis=-2) << 4
    d = raw[:, :2].copy().view(np.float16).astype(np.float32)[..., None]
    return ((d * scale)[..., None, None] * BOOK[indices].astype(np.float32)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    for byte in range(128, 160):
        store_u8(weights, byte, 0)
    for row in range(16):
        own = offset(block, row * row_bytes)
        for i in range(16):
            vector, within = i // 4, row // 4 * 16 + i % 4 // 2 * 8 + row % 4 * 2 + i % 2
            low, shared_byte = load_u8(own, 6 + place // 2 * 16 + i) >> place % 2 * 4 & 15, vector % 2 * 64 + within
            store_u8(weights, shared_byte, load_u8(weights, shared_byte) | low << 4 if vector >= 2 else low)
            bits = 128 + vector * 8 + within // 8
            store_u8(weights, bits, load_u8(weights, bits) | (load_u8(own, 70 + i) >> place & 1) << within % 8)
        high = load_u8(own, place // 4) >> place % 4 * 2 & 3
        store_i8(weights, 160 + row, (load_u8(own, 2 + place % 4) >> place // 4 * 4 & 15 | high << 4) - 32)


def columns_of(half):
    """Numbers of the book + ZERO: of each pair the first or the second."""
    return [int(value) + ZERO for value in BOOK[:, half]]


@intrinsic
def load_pairs(typing_context, p):
    """The 8 weight vectors of a unit."""

    def emit(context, builder, signature, args):
        vector, masks = llvm_type(i8x64), ir.VectorType(ir.IntType(1), 64)
        weights = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)

        def load(num_bytes, kind):
            value = builder.load(builder.bitcast(builder.gep(args[0], [INT64(num_bytes)]), kind.as_pointer()))
            value.align = 1
            return value

        both = [load(64 * i, vector) for i in range(2)]
        for v in range(4):
            low = builder.lshr(both[v - 2], constant(i8x64, 4)) if v >= 2 else builder.and_(both[v], constant(i8x64, 15))
            high = builder.bitcast(load(128 + 8 * v, INT64), masks)
            halves = []
            for table in (columns_of(0), columns_of(1)):
                one, other = (isa.lookup(builder, table[first : first + 16], low) for first in (0, 16))
                halves.append(builder.select(high, other, one))
            for half in range(2):  # first and second weights of pairs side by side, within each 16 bytes
                places = [start + half * 8 + i + which for start in range(0, 64, 16) for i in range(8) for which in (0, 64)]
                pairs = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(INT32, 64), places))
                weights = builder.insert_value(weights, pairs, 2 * v + half)
        return weights

    return Vectors(i8x64, 8)(pointer), emit


@device
def load_unit(weights, d):
    return load_pairs(weights), d * widen_i8(load_i8x16(weights, 160))


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 1)  # no float16 is too large
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
