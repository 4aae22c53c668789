"""TQ1_0: super-blocks of 256 weights with one scale; weight = d * (t - 1) with t in 0..2, up to five t in a byte.

A byte of the file is ceil(n * 256 / 243) of a number n of five ternary digits: its digits, the highest first, are what is carried
out of the byte each time it is multiplied by three.
File block, 54 bytes: 32 bytes, whose first digits are weights 0-31, second ones 32-63, ...; 16 bytes, likewise weights 160-239; 4
bytes with four digits each, likewise weights 240-255; float16 d.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d. A unit is 16 words, whose c-th byte holds the digits of
columns c, c + 4, ... c + 16, and of columns c + 20, c + 24 and c + 28 numbers of 5 bits, ceil(n * 32 / 27): 16 bits of each row
with the high four of each, c = 0 the lowest, then 8 bytes with their lowest bits, rows 0-7 in the low and rows 8-15 in the high
nibbles.
"""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.jit import intrinsic, ir
from numatp.kernels.rows import Vectors
from numatp.kernels.simd import (
    constant,
    i8x64,
    i32x16,
    llvm_type,
    load_f16x16,
    load_i16x16,
    load_i32x16,
    load_nibbles16,
    load_u8,
    offset,
    store_i16,
    store_u8,
    widen,
    words_of_bytes,
    words_of_halves,
)
from numatp.kernels.superblock import packer, products
from numatp.quants.table import FORMATS

FORMAT = FORMATS["TQ1_0"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 1  # the t of a zero


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 54) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., 52:].copy().view(np.float16).astype(np.float32)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    parts = [(blocks[..., None, first:last] * powers[:count]).reshape(rows, -1, count * (last - first))
             for first, last, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))]  # fmt: skip
    t = np.concatenate(parts, axis=-1).astype(np.uint16) * 3 >> 8
    return (d * (t.astype(np.float32) - ZERO)).reshape(rows, -1)


@device
def digit_of(block, column):
    """t of one of a file block's 256 weights."""
    if column < 160:
        byte, digit = column % 32, column // 32
    elif column < 240:
        byte, digit = 32 + column % 16, (column - 160) // 16
    else:
        byte, digit = 48 + column % 4, (column - 240) // 4
    value = int(load_u8(block, byte))
    for _ in range(digit):
        value = value * 3 & 255
    return value * 3 >> 8


@device
def store_unit(weights, block, row_bytes, place):
    for row in range(16):
        own, high, low = offset(block, row * row_bytes), 0, 0
        for c in range(4):
            n = 0
            for j in range(5):
                n = 3 * n + digit_of(own, place * 32 + j * 4 + c)
            store_u8(weights, row * 4 + c, (n * 256 + 242) // 243)
            n = 0
            for j in range(5, 8):
                n = 3 * n + digit_of(own, place * 32 + j * 4 + c)
            five = (n * 32 + 26) // 27
            high |= five >> 1 << 4 * c
            low |= (five & 1) << c
        store_i16(weights, 32 + row, high)
        shared_byte = 96 + row % 8
        store_u8(weights, shared_byte, load_u8(weights, shared_byte) | low << 4 if row >= 8 else low)


@intrinsic
def digits(typing_context, fives, high, low):
    """t of 16 rows x 32 columns; fives: the words with five digits per byte, high and low: 16 and 4 bits of the others."""

    def emit(context, builder, signature, args):
        fives, high, low = args
        vector, weights = llvm_type(i8x64), ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)

        def moved(words, shift, mask):
            shifted = builder.shl(words, constant(i32x16, shift))
            return builder.and_(shifted, constant(i32x16, mask))

        # Byte c of the others is the c-th nibble of `high` and below it the c-th bit of `low`: eight times a number of 5 bits.
        spread = builder.or_(high, builder.shl(high, constant(i32x16, 8)))
        others = builder.or_(moved(spread, 4, 0x00F000F0), moved(spread, 8, -0x0FFF1000))
        for c in range(4):
            others = builder.or_(others, moved(low, 7 * c + 3, 8 << 8 * c))
        for words, columns in ((fives, range(5)), (others, range(5, 8))):
            value = builder.bitcast(words, vector)
            for j in columns:
                digit = constant(i8x64, 0)
                for least in (86, 171):  # 256 / 3 and 512 / 3
                    more = builder.icmp_unsigned(">=", value, constant(i8x64, least))
                    digit = builder.sub(digit, builder.sext(more, vector))
                weights = builder.insert_value(weights, digit, j)
                value = builder.add(value, builder.add(value, value))
        return weights

    return Vectors(i8x64, 8)(i32x16, i32x16, i32x16), emit


@device
def load_unit(weights, both, place):
    high, low = words_of_halves(load_i16x16(weights, 32)), words_of_bytes(load_nibbles16(weights, 96))
    return digits(load_i32x16(weights, 0), high, low), widen(load_f16x16(both, 0))


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (26,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES)
