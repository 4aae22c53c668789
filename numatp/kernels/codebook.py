"""Weights that are numbers of a code book (numatp/quants/grids.py): of 8 or 4 columns that follow each other an index is stored.

A tile's unit holds an index's low 8 bits as a byte: in 64 bytes four indices of each of 16 rows, as the words of a plane lie
(kernels/planes.py). Its other bits, signs and scales come as 16 words, one per row. The book is in the first-level cache: an entry
of 8 bytes is one load for 8 weights.
"""

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import cgutils, intrinsic, ir, types
from numatp.kernels.rows import Vectors, map_rows
from numatp.kernels.simd import (
    BYTE,
    INT32,
    INT64,
    constant,
    fma,
    high_nibbles,
    i8x64,
    i32x16,
    llvm_type,
    load_u32,
    low_nibbles,
    offset,
    pointer,
    splat_f32,
    unary,
    widen_u8,
)


def book_loader(grid, zero, high=()):
    """Intrinsic load(p, words): weights + zero of 16 rows x 32 columns, whose indices' low bits are at p.

    grid: (entries, 8 or 4) numbers. high: where in a row's word the bits of each index above the 8th begin, if it has more.
    """
    entries, width = grid.shape
    table = ir.Constant(ir.ArrayType(BYTE, grid.size), bytearray((grid.astype(int) + zero).astype("u1").tobytes()))
    mask = entries // 256 - 1

    def emit(context, builder, signature, args):
        p, words = args
        place = ir.GlobalVariable(builder.module, table.type, builder.module.get_unique_name("code_book"))
        place.initializer, place.global_constant, place.linkage, place.unnamed_addr, place.align = table, True, "internal", True, 64
        base = builder.bitcast(place, BYTE.as_pointer())
        weights, found = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined), []
        for k in range(32 // width):
            if k % 4 == 0:
                address = builder.gep(p, [INT64(16 * k)])
                four = builder.load(builder.bitcast(address, words.type.as_pointer()))
                four.align = 1
            index = builder.and_(builder.lshr(four, constant(i32x16, k % 4 * 8)), constant(i32x16, 255))
            if mask:
                bits = builder.and_(builder.lshr(words, constant(i32x16, high[k])), constant(i32x16, mask))
                index = builder.or_(index, builder.shl(bits, constant(i32x16, 8)))
            found += isa.gather(builder, base, index, width)
        for j, vector in enumerate(found):
            weights = builder.insert_value(weights, builder.bitcast(vector, llvm_type(i8x64)), j)
        return weights

    @intrinsic
    def load(typing_context, p, words):
        return Vectors(i8x64, 8)(pointer, i32x16), emit

    return load


def sign_giver(zero):
    """Intrinsic with_signs(weights, signs): of weights + zero those less than zero whose bit of the row's word is set, the first
    column's lowest.
    """

    def emit(context, builder, signature, args):
        weights, signs = args
        of_bytes, twice = builder.bitcast(signs, llvm_type(i8x64)), constant(i8x64, 2 * zero)
        repeated = []
        for group in range(4):
            places = ir.Constant(ir.VectorType(INT32, 64), [4 * (i // 4) + group for i in range(64)])
            repeated.append(builder.shuffle_vector(of_bytes, of_bytes, places))

        def turned(j, vector):
            own = ir.Constant(vector.type, [1 << (4 * (j % 2) + i % 4) for i in range(64)])
            negative = builder.icmp_signed("!=", builder.and_(repeated[j // 2], own), constant(i8x64, 0))
            return builder.select(negative, builder.sub(twice, vector), vector)

        return map_rows(builder, weights, turned)

    @intrinsic
    def with_signs(typing_context, weights, signs):
        return weights(weights, i32x16), emit

    return with_signs


def step_adder(bits, unset=1, set_to=-1):
    """Intrinsic with_steps(weights, words): plus `set_to` where a bit of the row's word is set, else `unset`.

    bits: of each 8 columns.
    """
    least, most = (int.from_bytes(bytes([step & 255] * 4), "little", signed=True) for step in (unset, set_to))

    def emit(context, builder, signature, args):
        weights, words = args
        steps = {}
        for bit in dict.fromkeys(bits):
            is_set = builder.icmp_signed("!=", builder.and_(words, constant(i32x16, 1 << bit)), constant(i32x16, 0))
            step = builder.select(is_set, constant(i32x16, most), constant(i32x16, least))
            steps[bit] = builder.bitcast(step, llvm_type(i8x64))
        return map_rows(builder, weights, lambda j, vector: builder.add(vector, steps[bits[j // 2]]))

    @intrinsic
    def with_steps(typing_context, weights, words):
        return weights(weights, i32x16), emit

    return with_steps


def _with_parity(builder, words):
    seven = builder.and_(words, constant(i32x16, 0x7F7F7F7F))
    folded = builder.and_(builder.xor(seven, builder.lshr(seven, constant(i32x16, 4))), constant(i32x16, 0x0F0F0F0F))
    odd = isa.lookup(builder, [128 * (i.bit_count() % 2) for i in range(16)], builder.bitcast(folded, llvm_type(i8x64)))
    return builder.or_(seven, builder.bitcast(odd, words.type))


def _top_bits(builder, words):
    bits = builder.and_(builder.lshr(words, constant(i32x16, 7)), constant(i32x16, 0x01010101))
    powers = ir.Constant(llvm_type(i8x64), [1, 2, 4, 8] * 16)
    return isa.dot(builder, constant(i32x16, 0), builder.bitcast(bits, powers.type), powers)


# The 8th sign of a byte's 7: their number is even in all.
with_parity = unary(i32x16, i32x16, _with_parity)
# The numbers of 4 bits whose bits are the highest of each byte, the first byte's lowest.
top_bits = unary(i32x16, i32x16, _top_bits)


@device
def spread_signs(block, num_bytes):
    """Of a word of the file, four times 7 signs and 4 bits of a scale: a byte for each 7 signs with one bit of the scale on top."""
    word = load_u32(offset(block, num_bytes), 0)
    signs = word & 0x7F | word << 1 & 0x7F00 | word << 2 & 0x7F0000 | word << 3 & 0x7F000000
    return signs | word >> 21 & 0x80 | word >> 14 & 0x8000 | word >> 7 & 0x800000 | word & 0x80000000


@device
def half_scales(d, codes):
    """d * (2 * s + 1) / 8 of the s in the low and in the high nibbles of 16 bytes."""
    quarter, eighth = splat_f32(0.25), splat_f32(0.125)
    return d * fma(widen_u8(low_nibbles(codes)), quarter, eighth), d * fma(widen_u8(high_nibbles(codes)), quarter, eighth)


@intrinsic
def weight_at(typing_context, weights, row, column):
    """One byte of a unit's weights."""

    def emit(context, builder, signature, args):
        weights, row, column = args
        place = builder.bitcast(cgutils.alloca_once_value(builder, weights), BYTE.as_pointer())
        vector, within = builder.lshr(column, INT64(2)), builder.and_(column, INT64(3))
        index = builder.add(builder.shl(vector, INT64(6)), builder.add(builder.shl(row, INT64(2)), within))
        return builder.load(builder.gep(place, [index]))

    return types.uint8(weights, types.int64, types.int64), emit
