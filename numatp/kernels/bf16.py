"""BF16, the upper half of a float32: activation rows and panels of weights as the tile instructions (isa/amx.py) multiply them.

A panel is 16 rows of a matrix x some units of 32 columns, 1 KB each: columns 2i and 2i + 1 of row r are the halves of the r-th word
of the i-th 64 bytes. Each quant format makes panels of its tiles (`expand`).
"""

from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.rows import fused
from numatp.kernels.simd import INT16, INT64, LANES, constant, f32x16, i32x16, llvm_type, pointer, unary


def _round_up(builder, v):
    """The bits of finite float32, rounded to the nearest BF16 (of two away from zero) in their upper halves."""
    return builder.add(builder.bitcast(v, llvm_type(i32x16)), constant(i32x16, 0x8000))


def emit_pair(builder, p, index, even, odd):
    """Two columns of finite weights to the index-th 64 bytes at p."""
    low = builder.lshr(_round_up(builder, even), constant(i32x16, 16))
    high = builder.and_(_round_up(builder, odd), constant(i32x16, -0x10000))
    vector = llvm_type(i32x16).as_pointer()
    builder.store(builder.or_(low, high), builder.bitcast(builder.gep(p, [index]), vector)).align = 1


# Of words that hold two BF16 each, as float32: the lower halves, which are columns 2i of a panel, and the upper ones.
lower_halves = unary(f32x16, i32x16, lambda builder, v: builder.bitcast(builder.shl(v, constant(i32x16, 16)), llvm_type(f32x16)))
upper_halves = unary(
    f32x16, i32x16, lambda builder, v: builder.bitcast(builder.and_(v, constant(i32x16, -0x10000)), llvm_type(f32x16))
)


@intrinsic
def store_pairs(typing_context, out, weights, scale, shift):
    """Panel of scale * w + shift at out; w: 4 columns of 16 rows in each vector, bytes in 0..255 as dot products take them."""

    def emit(context, builder, signature, args):
        out, weights, scale, shift = args
        for j in range(weights.type.count):
            words = builder.bitcast(builder.extract_value(weights, j), llvm_type(i32x16))
            columns = []
            for byte in range(4):
                whole = builder.and_(builder.lshr(words, constant(i32x16, 8 * byte)), constant(i32x16, 255))
                columns.append(fused(builder, builder.sitofp(whole, scale.type), scale, shift))
            emit_pair(builder, out, INT64(128 * j), *columns[:2])
            emit_pair(builder, out, INT64(128 * j + 64), *columns[2:])
        return context.get_dummy_value()

    return types.void(pointer, weights, f32x16, f32x16), emit


@intrinsic
def store_rounded(typing_context, out, index, v):
    """16 float32 to BF16 at out, from the index-th number on: to the nearest, of two the even one; no number stays none."""

    def emit(context, builder, signature, args):
        out, index, v = args
        bits, sixteen = builder.bitcast(v, llvm_type(i32x16)), constant(i32x16, 16)
        even = builder.and_(builder.lshr(bits, sixteen), constant(i32x16, 1))
        rounded = builder.lshr(builder.add(builder.add(bits, constant(i32x16, 0x7FFF)), even), sixteen)
        rounded = builder.select(builder.fcmp_unordered("uno", v, v), constant(i32x16, 0x7FC0), rounded)
        halves = ir.VectorType(INT16, LANES)
        address = builder.bitcast(builder.gep(out, [builder.mul(index, INT64(2))]), halves.as_pointer())
        builder.store(builder.trunc(rounded, halves), address).align = 2
        return context.get_dummy_value()

    return types.void(pointer, types.int64, f32x16), emit
