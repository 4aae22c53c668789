"""AVX-512 without VNNI: bytes are multiplied and added in pairs to 16 bits, then in pairs to 32.

The first step saturates at 32767, so one factor must not exceed 128 where the other reaches 127: weights of all eight bits go in
as their magnitudes, and their signs move to x.
"""

from numatp.kernels.jit import ir
from numatp.kernels.simd import BYTE, INT16, INT32, INT64, call_llvm, constant, i8x64, i32x16, llvm_type

GROUP = 16
MANY = 0  # no tiles
DOT = ("vpmaddubsw", "vpmaddwd")
BIT = ir.IntType(1)


def dot(builder, total, weights, x):
    words = ir.VectorType(ir.IntType(16), 32)
    pairs = call_llvm(builder, "llvm.x86.avx512.pmaddubs.w.512", words, weights, x)
    fours = call_llvm(builder, "llvm.x86.avx512.pmaddw.d.512", total.type, pairs, ir.Constant(words, [1] * 32))
    return builder.add(total, fours)


def dot_biased(builder, total, weights, x):
    signed, zero = builder.xor(weights, constant(i8x64, -128)), constant(i8x64, 0)
    negative = builder.icmp_signed("<", signed, zero)
    magnitude = builder.select(negative, builder.sub(zero, signed), signed)
    return dot(builder, total, magnitude, builder.select(negative, builder.sub(zero, x), x))


def start(builder, start_of_x):
    return constant(i32x16, 0)


def times_power(builder, y, n):
    all_lanes, current_rounding = INT16(-1), INT32(4)
    return call_llvm(builder, "llvm.x86.avx512.mask.scalef.ps.512", y.type, y, n, y, all_lanes, current_rounding)


def lookup(builder, table, indices):
    # The instruction looks up in each 128 bits of its own.
    return call_llvm(
        builder, "llvm.x86.avx512.pshuf.b.512", indices.type, ir.Constant(ir.VectorType(BYTE, 64), list(table) * 4), indices
    )


def gather(builder, table, indices, width):
    if width == 4:
        zero, every = constant(i32x16, 0), ir.Constant(ir.VectorType(BIT, 16), [1] * 16)
        return [call_llvm(builder, "llvm.x86.avx512.mask.gather.dpi.512", zero.type, zero, table, indices, every, INT32(4))]
    quads, halves = ir.VectorType(INT64, 8), []
    for first in (0, 8):
        own = builder.shuffle_vector(indices, indices, ir.Constant(ir.VectorType(INT32, 8), list(range(first, first + 8))))
        zero, every = ir.Constant(quads, [0] * 8), ir.Constant(ir.VectorType(BIT, 8), [1] * 8)
        found = call_llvm(builder, "llvm.x86.avx512.mask.gather.dpq.512", quads, zero, table, own, every, INT32(8))
        halves.append(builder.bitcast(found, llvm_type(i32x16)))
    return [builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(INT32, 16), list(range(odd, 32, 2)))) for odd in (0, 1)]
