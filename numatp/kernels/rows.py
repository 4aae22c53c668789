"""Products of one weight vector with several activation rows at once: a vector of 16 results per row, all in registers.

`Rows` is the type of such results. Every operation works on all its rows, unrolled, so one source serves one row and sixteen.
What belongs to a row lies side by side in memory (kernels/activation.py): the rows' scales, sums or elements follow each other,
and 32 bytes of one row those of the row before.
"""

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import int64, intrinsic, ir, models, register_model, types
from numatp.kernels.simd import (
    FLOAT,
    INT32,
    INT64,
    LANES,
    call_llvm,
    constant,
    element_address,
    f32x16,
    i8x64,
    i32x16,
    llvm_type,
    load_i64,
    pointer,
    splat,
)

GROUP = isa.GROUP  # rows that one pass over a tile multiplies
FEW = 4  # fewer are multiplied this many at a time; divides GROUP
HALF = GROUP // 2
MANY = isa.MANY


class Vectors(types.Type):
    """`count` vectors of one type in registers."""

    def __init__(self, vector, count):
        self.vector, self.count = vector, count
        super().__init__(name=f"Vectors({vector} x {count})")

    # A product adds to these what another kind of sums (kernels/strip.py) may keep for later.

    def emit_outer(self, builder, total, w, s):
        return map_rows(builder, total, lambda m, sum_: fused(builder, w, load_splat(builder, s, FLOAT, m), sum_))

    def emit_dot(self, builder, total, weights, d, x, scales, starts, biased):
        """starts: None where there are none."""
        emit = _emit_dot if starts is None else _emit_dot_biased if biased else _emit_dot_from
        return emit(builder, total, weights, d, x, scales, starts)


@register_model(Vectors)
class VectorsModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, ir.ArrayType(llvm_type(numba_type.vector), numba_type.count))


def Rows(count):
    """The type of 16 float32 results for each of `count` rows."""
    return Vectors(f32x16, count)


def zeros(count):
    @intrinsic
    def make(typing_context):
        return Rows(count)(), lambda context, builder, signature, args: ir.Constant(context.get_value_type(Rows(count)), None)

    return make


zero_row, zero_pair, zero_few_rows, zero_half, zero_group = zeros(1), zeros(2), zeros(FEW), zeros(HALF), zeros(GROUP)


@device
def room_for(count):
    """Rows that work on `count` of them touches, up to a GROUP: one, FEW or a GROUP."""
    return 1 if count == 1 else (GROUP if count > FEW else FEW)


@device
def with_rows(count, work, *args):
    """work(zero, *args), `zero` being room_for(count) rows of zeros. Their number is part of a type: each has code of its own."""
    if count == 1:
        work(zero_row(), *args)
    elif count > FEW:
        work(zero_group(), *args)
    else:
        work(zero_few_rows(), *args)


@device
def pass_of(left):
    """Rows that a product takes in its next pass over a tile, of so many that are left: a pass unpacks the weights anew, and a
    spare row costs as much as another.
    """
    if left <= 2:
        return left
    if left <= FEW:
        return FEW
    return HALF if left <= HALF + FEW else GROUP


@device
def with_half(count, work, *args):
    """As with_rows, of exactly the pass_of() rows, which are at most HALF or FEW."""
    if count == 1:
        work(zero_row(), *args)
    elif count == 2:
        work(zero_pair(), *args)
    elif HALF > FEW and count == HALF:
        work(zero_half(), *args)
    else:
        work(zero_few_rows(), *args)


@device
def with_pass(count, work, *args):
    """As with_rows, of exactly the pass_of() rows."""
    if count == GROUP:
        work(zero_group(), *args)
    else:
        with_half(count, work, *args)


@device
def num_long(rows):
    """Of the rows whose numbers are at `rows`, int64 (2,): those, the first ones, of prompts of LONG_PROMPT tokens and more."""
    return load_i64(rows, 1)


@device
def num_many(rows):
    """Those of them that go through tile registers as "bf16": all, where there are some."""
    return num_long(rows) if MANY > 0 else int64(0)


@intrinsic
def num_rows(typing_context, rows):
    """Their number, a constant."""
    return types.int64(rows), lambda context, builder, signature, args: INT64(args[0].type.count)


@intrinsic
def block(typing_context, a, b, c, d, e, f, g, h):
    """The weights of 16 rows x 32 columns, 4 columns a vector."""

    def emit(context, builder, signature, args):
        value = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for i, arg in enumerate(args):
            value = builder.insert_value(value, arg, i)
        return value

    return Vectors(i8x64, 8)(*[i8x64] * 8), emit


def load_splat(builder, p, element_type, index, num_bytes=0):
    """The index-th element behind p + num_bytes in all lanes."""
    address = builder.bitcast(builder.gep(p, [INT64(num_bytes)]), element_type.as_pointer())
    value = builder.load(builder.gep(address, [INT64(index)]))
    value.align = 1 if num_bytes else 4
    return splat(builder, value, LANES)


def map_rows(builder, rows, change):
    """rows with row m replaced by change(m, rows[m])."""
    for m in range(rows.type.count):
        rows = builder.insert_value(rows, change(m, builder.extract_value(rows, m)), m)
    return rows


def fused(builder, a, b, c):
    return call_llvm(builder, "llvm.fma.v16f32", c.type, a, b, c)


def dot_emitter(dot, start):
    """total[m] += d * scales[m] * (start + weights . x[m]), the product over int8 of 4 * (number of weight vectors) columns."""

    def emit(builder, total, weights, d, x, scales, starts):
        vectors = [builder.extract_value(weights, j) for j in range(weights.type.count)]

        def row(m, sum_):
            integers = start(builder, m, starts)
            for j, vector in enumerate(vectors):
                bytes4 = load_splat(builder, x, INT32, j, 32 * m)
                integers = dot(builder, integers, vector, builder.bitcast(bytes4, vector.type))
            scaled = builder.fmul(builder.sitofp(integers, d.type), load_splat(builder, scales, FLOAT, m))
            return fused(builder, d, scaled, sum_)

        return map_rows(builder, total, row)

    return emit


_emit_dot = dot_emitter(isa.dot, lambda builder, m, starts: constant(i32x16, 0))
_emit_dot_from = dot_emitter(isa.dot, lambda builder, m, starts: load_splat(builder, starts, INT32, m))
_emit_dot_biased = dot_emitter(isa.dot_biased, lambda builder, m, starts: isa.start(builder, load_splat(builder, starts, INT32, m)))


@intrinsic
def add_dot(typing_context, total, weights, d, x, scales):
    """total[m] + d * scales[m] * (weights . x[m]); weights in 0..127, x int8 (rows, 32) from its first column to multiply."""

    def emit(context, builder, signature, args):
        return total.emit_dot(builder, *args, None, False)

    return total(total, weights, f32x16, pointer, pointer), emit


@intrinsic
def add_dot_from(typing_context, total, weights, d, x, scales, starts):
    """The same for weights stored + a zero, in 0..128; starts: int32 (rows,), -zero * the sum of each x over these columns."""

    def emit(context, builder, signature, args):
        return total.emit_dot(builder, *args, False)

    return total(total, weights, f32x16, pointer, pointer, pointer), emit


@intrinsic
def add_dot_biased(typing_context, total, weights, d, x, scales, starts):
    """The same for weights stored + 128 in 0..255."""

    def emit(context, builder, signature, args):
        return total.emit_dot(builder, *args, True)

    return total(total, weights, f32x16, pointer, pointer, pointer), emit


@intrinsic
def add_weighted(typing_context, total, values, w, scales):
    """total[m] + scales[m] * (w[m] . values): int8 values of 16 rows x 32 columns, w uint8 (rows, 32) up to 127."""

    def emit(context, builder, signature, args):
        total, values, w, scales = args

        def row(m, sum_):
            integers = constant(i32x16, 0)
            for j in range(values.type.count):
                vector = builder.extract_value(values, j)
                bytes4 = load_splat(builder, w, INT32, j, 32 * m)
                integers = isa.dot(builder, integers, builder.bitcast(bytes4, vector.type), vector)
            return fused(builder, load_splat(builder, scales, FLOAT, m), builder.sitofp(integers, sum_.type), sum_)

        return map_rows(builder, total, row)

    return total(total, values, pointer, pointer), emit


@intrinsic
def add_outer(typing_context, total, w, s):
    """total[m] + w * s[m], s float32 (rows,). Before a product with the same columns, not between others."""

    def emit(context, builder, signature, args):
        return total.emit_outer(builder, *args)

    return total(total, f32x16, pointer), emit


@intrinsic
def add_outer_apart(typing_context, total, w, s, pitch):
    """total[m] + w * s[m], the floats s[m] `pitch` bytes apart (a constant, so that addresses cost nothing)."""

    def emit(context, builder, signature, args):
        total, w, s, pitch = args

        def row(m, sum_):
            address = builder.bitcast(builder.gep(s, [builder.mul(pitch, INT64(m))]), FLOAT.as_pointer())
            value = builder.load(address)
            value.align = 4
            return fused(builder, w, splat(builder, value, LANES), sum_)

        return map_rows(builder, total, row)

    return total(total, f32x16, pointer, types.int64), emit


@intrinsic
def add_rows(typing_context, a, b):
    """a[m] + b[m]."""

    def emit(context, builder, signature, args):
        a, b = args
        return map_rows(builder, a, lambda m, row: builder.fadd(row, builder.extract_value(b, m)))

    return a(a, b), emit


@intrinsic
def scale_rows(typing_context, rows, s):
    """rows[m] * s[m], s float32 (rows,)."""

    def emit(context, builder, signature, args):
        rows, s = args
        return map_rows(builder, rows, lambda m, row: builder.fmul(row, load_splat(builder, s, FLOAT, m)))

    return rows(rows, pointer), emit


@intrinsic
def load_rows(typing_context, p, stride, index, like):
    """As many rows as `like` has: 16 floats each at p + m * stride bytes, from the index-th float on."""

    def emit(context, builder, signature, args):
        p, stride, index, like = args

        def row(m, _):
            place = builder.gep(p, [builder.mul(stride, INT64(m))])
            value = builder.load(element_address(builder, f32x16, FLOAT, place, index))
            value.align = 4
            return value

        return map_rows(builder, like, row)

    return like(pointer, types.int64, types.int64, like), emit


@intrinsic
def store_rows(typing_context, p, stride, index, rows):
    """Stores row m as 16 floats at p + m * stride bytes, from the index-th float on."""

    def emit(context, builder, signature, args):
        p, stride, index, rows = args
        for m in range(rows.type.count):
            place = builder.gep(p, [builder.mul(stride, INT64(m))])
            store = builder.store(builder.extract_value(rows, m), element_address(builder, f32x16, FLOAT, place, index))
            store.align = 4
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.int64, rows), emit
