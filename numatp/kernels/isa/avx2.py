"""AVX2: as AVX-512 without VNNI, on halves of 256 bits; 16 registers hold fewer rows."""

from numatp.kernels.jit import ir
from numatp.kernels.simd import BYTE, INT32, INT64, call_llvm, constant, i8x64, i32x16, llvm_type

GROUP = 4
MANY = 0  # no tiles
DOT = ("vpmaddubsw", "vpmaddwd")
HALF_BYTES, HALF_WORDS, HALF_INTS = (ir.VectorType(ir.IntType(bits), 256 // bits) for bits in (8, 16, 32))


def _half(builder, v, index):
    lanes = v.type.count // 2
    chosen = ir.Constant(ir.VectorType(INT32, lanes), list(range(index * lanes, (index + 1) * lanes)))
    return builder.shuffle_vector(v, v, chosen)


def _join(builder, low, high):
    lanes = ir.Constant(ir.VectorType(INT32, 2 * low.type.count), list(range(2 * low.type.count)))
    return builder.shuffle_vector(low, high, lanes)


def dot(builder, total, weights, x):
    sums = []
    for index in (0, 1):
        halves = (_half(builder, v, index) for v in (weights, x))
        pairs = call_llvm(builder, "llvm.x86.avx2.pmadd.ub.sw", HALF_WORDS, *halves)
        sums.append(call_llvm(builder, "llvm.x86.avx2.pmadd.wd", HALF_INTS, pairs, ir.Constant(HALF_WORDS, [1] * 16)))
    return builder.add(total, _join(builder, *sums))


def dot_biased(builder, total, weights, x):
    signed, zero = builder.xor(weights, constant(i8x64, -128)), constant(i8x64, 0)
    magnitude = builder.select(builder.icmp_signed("<", signed, zero), builder.sub(zero, signed), signed)
    moved = []
    for index in (0, 1):
        halves = (_half(builder, v, index) for v in (x, signed))
        moved.append(call_llvm(builder, "llvm.x86.avx2.psign.b", HALF_BYTES, *halves))
    return dot(builder, total, magnitude, _join(builder, *moved))


def start(builder, start_of_x):
    return constant(i32x16, 0)


def times_power(builder, y, n):
    """The power is built from its bits."""
    exponent = builder.add(builder.fptosi(n, llvm_type(i32x16)), constant(i32x16, 127))
    return builder.fmul(y, builder.bitcast(builder.shl(exponent, constant(i32x16, 23)), y.type))


def lookup(builder, table, indices):
    both = ir.Constant(HALF_BYTES, list(table) * 2)  # the instruction looks up in each 128 bits of its own
    found = [call_llvm(builder, "llvm.x86.avx2.pshuf.b", HALF_BYTES, both, _half(builder, indices, index)) for index in (0, 1)]
    return _join(builder, *found)


def gather(builder, table, indices, width):
    halves = [_half(builder, indices, index) for index in (0, 1)]
    if width == 4:
        zero, every = ir.Constant(HALF_INTS, [0] * 8), ir.Constant(HALF_INTS, [-1] * 8)
        found = [
            call_llvm(builder, "llvm.x86.avx2.gather.d.d.256", HALF_INTS, zero, table, half, every, BYTE(4)) for half in halves
        ]
        return [_join(builder, *found)]
    quads, pairs = ir.VectorType(INT64, 4), []
    zero, every = ir.Constant(quads, [0] * 4), ir.Constant(quads, [-1] * 4)
    for half in halves:
        own = [_half(builder, half, index) for index in (0, 1)]
        found = [call_llvm(builder, "llvm.x86.avx2.gather.d.q.256", quads, zero, table, four, every, BYTE(8)) for four in own]
        pairs.append(builder.bitcast(_join(builder, *found), llvm_type(i32x16)))
    return [builder.shuffle_vector(*pairs, ir.Constant(ir.VectorType(INT32, 16), list(range(odd, 32, 2)))) for odd in (0, 1)]
