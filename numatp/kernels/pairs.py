"""BF16 for tile registers where a pair side by side is columns i and i + 16 of 32: of queries, keys, weights and values
(kernels/tiled_attention.py). Two vectors are stored at once then, without moving numbers across lanes.
"""

from numatp.kernels.bf16 import emit_pair
from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.simd import INT32, INT64, LANES, constant, f32x16, i32x16, llvm_type, pointer


@intrinsic
def store_pair(typing_context, out, low, high):
    """16 pairs, rounded to the nearest BF16: the columns i (low) and i + 16 (high) of a row, or of 16 rows those two columns."""

    def emit(context, builder, signature, args):
        emit_pair(builder, args[0], INT64(0), args[1], args[2])
        return context.get_dummy_value()

    return types.void(pointer, f32x16, f32x16), emit


def _column(builder, vectors, i, flip=0):
    """Column i of 16 rows, as float32; vectors: 4 columns of int8 in each, whose bits `flip` are turned."""
    words = builder.bitcast(builder.extract_value(vectors, i // 4), llvm_type(i32x16))
    top = builder.shl(builder.xor(words, constant(i32x16, flip * 0x01010101)), constant(i32x16, 24 - i % 4 * 8))
    return builder.sitofp(builder.ashr(top, constant(i32x16, 24)), llvm_type(f32x16))


def _each_lane(builder, v, i):
    """Lane i of v in all lanes."""
    undefined = ir.Constant(v.type, ir.Undefined)
    return builder.shuffle_vector(v, undefined, ir.Constant(ir.VectorType(INT32, LANES), [i] * LANES))


@intrinsic
def store_scaled_rows(typing_context, out, vectors, scales):
    """1 KB of a panel at out: bytes q + 128 of 16 rows x 32 columns, 4 columns in each vector; q times the 16 rows' scales."""

    def emit(context, builder, signature, args):
        out, vectors, scales = args
        for i in range(16):
            low, high = (builder.fmul(_column(builder, vectors, column, 128), scales) for column in (i, i + 16))
            emit_pair(builder, out, INT64(64 * i), low, high)
        return context.get_dummy_value()

    return types.void(pointer, vectors, f32x16), emit


@intrinsic
def store_scaled_columns(typing_context, out, vectors, low_scales, high_scales):
    """The same of bytes q, times scales of the columns: of the first 16, and of the others."""

    def emit(context, builder, signature, args):
        out, vectors, low_scales, high_scales = args
        for i in range(16):
            low = builder.fmul(_column(builder, vectors, i), _each_lane(builder, low_scales, i))
            high = builder.fmul(_column(builder, vectors, i + 16), _each_lane(builder, high_scales, i))
            emit_pair(builder, out, INT64(64 * i), low, high)
        return context.get_dummy_value()

    return types.void(pointer, vectors, f32x16, f32x16), emit


@intrinsic
def store_columns(typing_context, out, stride, vectors, scales):
    """What store_scaled_rows makes panels of as float32, `stride` bytes from column to column."""

    def emit(context, builder, signature, args):
        out, stride, vectors, scales = args
        for i in range(32):
            place = builder.gep(out, [builder.mul(stride, INT64(i))])
            value = builder.fmul(_column(builder, vectors, i, 128), scales)
            builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(pointer, types.int64, vectors, f32x16), emit
