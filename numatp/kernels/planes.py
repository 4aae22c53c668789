"""Weights of few bits in a tile: bit planes, from which the vectors that the dot product multiplies come by shift and mask.

A plane holds `bits` (4, 2 or 1) bits of each of 32 columns x 16 rows in `bits` vectors of 64 bytes. Columns 4j..4j+3 of row r are
bytes 4r..4r+3 of vector j % bits, in the field of bits that begins at j // bits * bits.
"""

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.rows import Vectors, map_rows
from numatp.kernels.simd import INT32, constant, i8x64, i32x16, llvm_type, load_i16, load_u8, offset, pointer, splat, store_i16


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


def transposed(builder, p, stride):
    """4 vectors of 16 words: lane r of vector j is the j-th word at p + r * stride."""
    word = ir.IntType(32)
    four = ir.VectorType(word, 4)

    def lanes(one, other, order):
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(word, len(order)), order))

    rows = []
    for row in range(16):
        place = builder.gep(p, [builder.mul(stride, ir.IntType(64)(row))])
        rows.append(builder.load(builder.bitcast(place, four.as_pointer())))
        rows[-1].align = 1
    # Rows i, i + 4, i + 8 and i + 12 side by side, so that what follows stays within 4 words and no lane moves twice.
    pairs = [lanes(rows[i], rows[i + 4], list(range(8))) for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    a, b, c, d = (lanes(pairs[i], pairs[i + 4], list(range(16))) for i in range(4))

    def within_four(one, other, order):
        """order: of the 4 words of one and the 4 of other that belong together, the 4 to take."""
        return lanes(one, other, [part + (i if i < 4 else i + 12) for part in range(0, 16, 4) for i in order])

    words = []
    for order in ([0, 4, 1, 5], [2, 6, 3, 7]):
        ab, cd = within_four(a, b, order), within_four(c, d, order)
        words += [within_four(ab, cd, [0, 1, 4, 5]), within_four(ab, cd, [2, 3, 6, 7])]
    return words


def store_vectors(builder, p, vectors):
    """One after another, 64 bytes each."""
    for j, vector in enumerate(vectors):
        place = builder.gep(p, [ir.Constant(ir.IntType(64), 64 * j)])
        builder.store(vector, builder.bitcast(place, vector.type.as_pointer())).align = 1


@intrinsic
def load_words(typing_context, p, stride):
    """The 16 bytes at p of each of 16 rows, `stride` apart: lane r of vector j is the j-th word of row r."""

    def emit(context, builder, signature, args):
        words = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j, vector in enumerate(transposed(builder, *args)):
            words = builder.insert_value(words, vector, j)
        return words

    return types.UniTuple(i32x16, 4)(pointer, types.int64), emit


@intrinsic
def store_words(typing_context, weights, block, stride, flip):
    """The 16 bytes at `block` of each of 16 rows, `stride` apart, with the bits of `flip` turned: word j of row r to byte
    64 * j + 4 * r of weights.
    """

    def emit(context, builder, signature, args):
        weights, block, stride, flip = args
        turned = splat(builder, flip, 16)
        store_vectors(builder, weights, [builder.xor(words, turned) for words in transposed(builder, block, stride)])
        return context.get_dummy_value()

    return types.void(pointer, pointer, types.int64, types.int32), emit


def plane_storer(bits):
    """Intrinsic store(plane, block, stride, shift): of the 32 bytes at `block` of each of 16 rows, `stride` apart, the `bits` bits
    from the shift-th on.
    """

    def emit(context, builder, signature, args):
        plane, block, stride, shift = args
        vector = llvm_type(i32x16)
        by, mask = splat(builder, builder.trunc(shift, INT32), 16), constant(i32x16, ((1 << bits) - 1) * 0x01010101)
        halves = []
        for num_bytes in (0, 16):
            words = transposed(builder, builder.gep(block, [ir.Constant(ir.IntType(64), num_bytes)]), stride)
            halves.append([builder.and_(builder.lshr(word, by), mask) for word in words])
        # Words j and j + 4 are 4 bits apart for any number of bits; words j + bits then lie `bits` further up.
        fields = [builder.or_(low, builder.shl(high, ir.Constant(vector, [4] * 16))) for low, high in zip(*halves, strict=True)]
        for j in range(bits, 4):
            moved = builder.shl(fields[j], ir.Constant(vector, [j // bits * bits] * 16))
            fields[j % bits] = builder.or_(fields[j % bits], moved)
        store_vectors(builder, plane, fields[:bits])
        return context.get_dummy_value()

    @intrinsic
    def store(typing_context, plane, block, stride, shift):
        return types.void(pointer, pointer, types.int64, types.int64), emit

    return store


store_nibble_plane, store_pair_plane, store_bit_plane = plane_storer(4), plane_storer(2), plane_storer(1)


@intrinsic
def store_bits(typing_context, plane, words):
    """A plane of 1 bit from the 32 bits of each of 16 rows, the first column's lowest."""

    def emit(context, builder, signature, args):
        plane, words = args
        bits = constant(i32x16, 0)
        for j in range(8):
            four = builder.and_(builder.lshr(words, constant(i32x16, 4 * j)), constant(i32x16, 15))
            # Four copies, 7 bits apart, have one bit of the four at the bottom of each byte.
            spread = builder.mul(four, constant(i32x16, 1 | 1 << 7 | 1 << 14 | 1 << 21))
            bits = builder.or_(bits, builder.shl(builder.and_(spread, constant(i32x16, 0x01010101)), constant(i32x16, j)))
        store_vectors(builder, plane, [bits])
        return context.get_dummy_value()

    return types.void(pointer, i32x16), emit


@device
def store_halves(out, block, stride):
    """Two bytes each of 16 blocks, `stride` apart, side by side."""
    for row in range(16):
        store_i16(out, row, load_i16(offset(block, row * stride), 0))


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


def taken(*numbers):
    """Intrinsic: some of the weight vectors, each of which are 4 columns."""

    def emit(context, builder, signature, args):
        half = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j, number in enumerate(numbers):
            half = builder.insert_value(half, builder.extract_value(args[0], number), j)
        return half

    @intrinsic
    def take(typing_context, weights):
        return Vectors(i8x64, len(numbers))(weights), emit

    return take


first_half, second_half = taken(0, 1, 2, 3), taken(4, 5, 6, 7)
