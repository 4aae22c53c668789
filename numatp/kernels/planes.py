"""Weights of few bits in a tile: bit planes, from which the vectors that the dot product multiplies come by shift and mask.

A plane holds `bits` (4, 2 or 1) bits of each of 32 columns x 16 rows in `bits` vectors of 64 bytes. Columns 4j..4j+3 of row r are
bytes 4r..4r+3 of vector j % bits, in the field of bits that begins at j // bits * bits.
"""

from llvmlite import ir
from numba import int32, types
from numba.extending import intrinsic

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.rows import Vectors, map_rows
from numatp.kernels.simd import constant, i8x64, llvm_type, load_i32, load_u8, offset, pointer, splat, store_i32


def plane_loader(bits, position, table=None):
    """Intrinsic load(p): the plane at p as the 8 weight vectors of 16 rows x 32 columns, its bits moved up to `position`.

    table: 16 bytes; the weights are what it holds for each four bits.
    """

    def emit(context, builder, signature, args):
        vector = llvm_type(i8x64)
        words = ir.VectorType(ir.IntType(16), 32)  # 16-bit lanes shift on every ISA; the mask drops the neighbour byte's bits
        loaded = []
        for index in range(bits):
            address = builder.bitcast(builder.gep(args[0], [ir.Constant(ir.IntType(64), 64 * index)]), vector.as_pointer())
            loaded.append(builder.load(address))
            loaded[-1].align = 1
        weights = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j in range(8):
            value, shift = loaded[j % bits], j // bits * bits - position
            if shift:
                move = builder.lshr if shift > 0 else builder.shl
                moved = move(builder.bitcast(value, words), ir.Constant(words, [abs(shift)] * 32))
                value = builder.bitcast(moved, vector)
            mask = ((1 << bits) - 1) << position
            value = builder.and_(value, constant(i8x64, mask))
            weights = builder.insert_value(weights, isa.lookup(builder, table, value) if table else value, j)
        return weights

    @intrinsic
    def load(typing_context, p):
        return Vectors(i8x64, 8)(pointer), emit

    return load


load_nibbles, load_fifth_bits = plane_loader(4, 0), plane_loader(1, 4)


@intrinsic
def transpose_words(typing_context, a, b, c, d, out, flip):
    """4 words of each of 4 rows: word j of all four to out + 64 * j, with the bits of `flip` turned."""

    def emit(context, builder, signature, args):
        word = ir.IntType(32)
        four = ir.VectorType(word, 4)
        turned = splat(builder, args[5], 4)

        def words(row):
            value = builder.load(builder.bitcast(row, four.as_pointer()))
            value.align = 1
            return builder.xor(value, turned)

        def lanes(one, other, *order):
            return builder.shuffle_vector(one, other, ir.Constant(four, order))

        a, b, c, d = map(words, args[:4])
        for half, order in enumerate([(0, 4, 1, 5), (2, 6, 3, 7)]):
            ab, cd = lanes(a, b, *order), lanes(c, d, *order)
            for j, value in enumerate([lanes(ab, cd, 0, 1, 4, 5), lanes(ab, cd, 2, 3, 6, 7)], 2 * half):
                place = builder.gep(args[4], [ir.Constant(ir.IntType(64), 64 * j)])
                builder.store(value, builder.bitcast(place, four.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(pointer, pointer, pointer, pointer, pointer, types.int32), emit


@device
def store_words(weights, block, row_bytes, rows, flip):
    """The 16 bytes at `block` of each of 16 rows, row_bytes apart: word j of row r to byte 64 * j + 4 * r of weights.

    Rows from `rows` (at least 1) on get what the last one has.
    """
    for row in range(0, 16, 4):
        transpose_words(
            offset(block, min(row, rows - 1) * row_bytes), offset(block, min(row + 1, rows - 1) * row_bytes),
            offset(block, min(row + 2, rows - 1) * row_bytes), offset(block, min(row + 3, rows - 1) * row_bytes),
            offset(weights, row * 4), int32(flip),
        )  # fmt: skip


@device
def spread(bits):
    """A word whose four bytes have the lowest four of `bits` as their lowest."""
    return (bits & 15) * (1 | 1 << 7 | 1 << 14 | 1 << 21)


@device
def store_word(plane, bits, row, j, word):
    """Columns 4j..4j+3 of a row: the lowest `bits` of each byte of word. j must come in ascending order."""
    place, shift = j % bits * 16 + row, j // bits * bits
    field = (word & ((1 << bits) - 1) * 0x01010101) << shift
    store_i32(plane, place, field | load_i32(plane, place) if shift else field)


@device
def plane_element(plane, bits, row, column):
    """The bits of one weight, column in 0..31."""
    j = column // 4
    return (load_u8(plane, j % bits * 64 + row * 4 + column % 4) >> (j // bits * bits)) & ((1 << bits) - 1)


@intrinsic
def merged(typing_context, a, b):
    """The weights whose bits are in two planes."""

    def emit(context, builder, signature, args):
        a, b = args
        return map_rows(builder, a, lambda j, vector: builder.or_(vector, builder.extract_value(b, j)))

    return a(a, b), emit


def half_of(first):
    """Intrinsic: four of the 8 weight vectors, which are 16 columns."""

    def emit(context, builder, signature, args):
        half = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j in range(4):
            half = builder.insert_value(half, builder.extract_value(args[0], first + j), j)
        return half

    @intrinsic
    def take(typing_context, weights):
        return Vectors(i8x64, 4)(weights), emit

    return take


first_half, second_half = half_of(0), half_of(4)
