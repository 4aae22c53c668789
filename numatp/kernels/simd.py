"""SIMD vector types for Numba: LLVM vectors of 16 lanes, and the few operations that kernels need.

Everything here is the same on every ISA, because LLVM cuts a vector into what the machine has; what differs is in the
ISA's own file (see dot.py). Memory is reached through a `Pointer` plus an index, so that LLVM sees pointer arithmetic and
no integer casts.
"""

import itertools
import operator

from numatp.kernels.jit import cgutils, intrinsic, ir, lower_builtin, models, register_model, type_callable, types

LANES = 16  # float32 lanes of one vector, and rows of one weight tile

BYTE, HALF, FLOAT, DOUBLE = ir.IntType(8), ir.HalfType(), ir.FloatType(), ir.DoubleType()
INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Pointer(types.Type):
    """An address; arithmetic and loads count in the element that the operation names."""

    def __init__(self):
        super().__init__(name="Pointer")


@register_model(Pointer)
class PointerModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, BYTE.as_pointer())


class Vector(types.Type):
    """`lanes` elements of one LLVM type in a register."""

    def __init__(self, element, lanes):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}x{lanes})")


ELEMENTS = {"f32": FLOAT, "f16": HALF, "i32": INT32, "i16": INT16, "i8": BYTE}


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, llvm_type(numba_type))


pointer = Pointer()
f32x16 = Vector("f32", 16)
f16x16 = Vector("f16", 16)
i32x16 = Vector("i32", 16)
i16x16 = Vector("i16", 16)
i8x64 = Vector("i8", 64)
i8x16 = Vector("i8", 16)
SCALARS = {
    types.float32: FLOAT, types.float64: DOUBLE, types.int64: INT64, types.int32: INT32, types.int16: INT16, types.int8: BYTE,
    types.uint8: BYTE, types.uint32: INT32,
}  # fmt: skip


def llvm_type(numba_type):
    if isinstance(numba_type, Vector):
        return ir.VectorType(ELEMENTS[numba_type.element], numba_type.lanes)
    return SCALARS[numba_type]


def constant(vector, value):
    return ir.Constant(llvm_type(vector), [value] * vector.lanes)


def splat(builder, scalar, lanes):
    """LLVM vector with `scalar` in every lane."""
    vector_type = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def call_llvm(builder, name, result, *args):
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def unary(result, argument, emit):
    """Intrinsic of one argument: emit(builder, value) -> value."""

    @intrinsic
    def operation(typing_context, a):
        return result(argument), lambda context, builder, signature, args: emit(builder, args[0])

    return operation


# ---------------------------------------------------------------- memory


@intrinsic
def offset(typing_context, p, num_bytes):
    """p + num_bytes."""
    return pointer(pointer, types.int64), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


def element_address(builder, numba_type, element_type, p, index):
    typed = builder.bitcast(p, element_type.as_pointer())
    return builder.bitcast(builder.gep(typed, [index]), llvm_type(numba_type).as_pointer())


def loader(numba_type, element_type, align):
    @intrinsic
    def load(typing_context, p, index):
        def emit(context, builder, signature, args):
            value = builder.load(element_address(builder, numba_type, element_type, *args))
            value.align = align
            return value

        return numba_type(pointer, types.int64), emit

    return load


def storer(numba_type, element_type, align):
    @intrinsic
    def store(typing_context, p, index, value):
        def emit(context, builder, signature, args):
            instruction = builder.store(args[2], element_address(builder, numba_type, element_type, *args[:2]))
            instruction.align = align
            return context.get_dummy_value()

        return types.void(pointer, types.int64, numba_type), emit

    return store


# The index counts elements; load_f32(p, 3) is the fourth float at p. Vectors may begin at any element.
load_f32, store_f32 = loader(types.float32, FLOAT, 4), storer(types.float32, FLOAT, 4)
load_f64, store_f64 = loader(types.float64, DOUBLE, 8), storer(types.float64, DOUBLE, 8)
load_i64, store_i64 = loader(types.int64, INT64, 8), storer(types.int64, INT64, 8)
load_i32, store_i32 = loader(types.int32, INT32, 4), storer(types.int32, INT32, 4)
load_i16, store_i16 = loader(types.int16, INT16, 2), storer(types.int16, INT16, 2)
load_u8, store_u8 = loader(types.uint8, BYTE, 1), storer(types.uint8, BYTE, 1)
load_u32, store_u32 = loader(types.uint32, INT32, 1), storer(types.uint32, INT32, 1)
load_i8, store_i8 = loader(types.int8, BYTE, 1), storer(types.int8, BYTE, 1)
load_f32x16, store_f32x16 = loader(f32x16, FLOAT, 4), storer(f32x16, FLOAT, 4)
load_f16x16, store_f16x16 = loader(f16x16, HALF, 2), storer(f16x16, HALF, 2)
load_i32x16 = loader(i32x16, INT32, 4)
load_i16x16 = loader(i16x16, INT16, 2)
load_i8x16 = loader(i8x16, BYTE, 1)
load_i8x64, store_i8x64 = loader(i8x64, BYTE, 1), storer(i8x64, BYTE, 1)


@intrinsic
def load_nibbles16(typing_context, p, index):
    """The 8 bytes from p[index] on as 16: their low nibbles, then their high ones."""

    def emit(context, builder, signature, args):
        bytes8 = ir.VectorType(BYTE, 8)
        value = builder.load(builder.bitcast(builder.gep(args[0], [args[1]]), bytes8.as_pointer()))
        value.align = 1
        low, high = builder.and_(value, ir.Constant(bytes8, [15] * 8)), builder.lshr(value, ir.Constant(bytes8, [4] * 8))
        return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(INT32, LANES), list(range(LANES))))

    return i8x16(pointer, types.int64), emit


@intrinsic
def load_pointer(typing_context, p, index):
    """The index-th address of a table of addresses."""

    def emit(context, builder, signature, args):
        table = builder.bitcast(args[0], BYTE.as_pointer().as_pointer())
        return builder.load(builder.gep(table, [args[1]]))

    return pointer(pointer, types.int64), emit


@intrinsic
def fetch_add(typing_context, p, value):
    """Adds to the int64 at p and returns what it was; orders the memory accesses of both sides."""

    def emit(context, builder, signature, args):
        word = builder.bitcast(args[0], INT64.as_pointer())
        return builder.atomic_rmw("add", word, args[1], "acq_rel")

    return types.int64(pointer, types.int64), emit


@intrinsic
def load_f16(typing_context, p, index):
    def emit(context, builder, signature, args):
        address = builder.gep(builder.bitcast(args[0], HALF.as_pointer()), [args[1]])
        value = builder.load(address)
        value.align = 2
        return builder.fpext(value, FLOAT)

    return types.float32(pointer, types.int64), emit


@intrinsic
def store_f16(typing_context, p, index, value):
    def emit(context, builder, signature, args):
        address = builder.gep(builder.bitcast(args[0], HALF.as_pointer()), [args[1]])
        instruction = builder.store(builder.fptrunc(args[2], HALF), address)
        instruction.align = 2
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), emit


@intrinsic
def load_i8x4_splat(typing_context, p, index):
    """The four int8 at p[index : index + 4], repeated 16 times."""

    def emit(context, builder, signature, args):
        address = builder.gep(args[0], [args[1]])
        value = builder.load(builder.bitcast(address, INT32.as_pointer()))
        value.align = 1
        return builder.bitcast(splat(builder, value, LANES), llvm_type(i8x64))

    return i8x64(pointer, types.int64), emit


@intrinsic
def prefetch(typing_context, p, num_bytes):
    """Asks for the cache line at p + num_bytes to come into the second-level cache; any address is harmless."""

    def emit(context, builder, signature, args):
        call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), builder.gep(args[0], [args[1]]), INT32(0), INT32(2), INT32(1))
        return context.get_dummy_value()

    return types.void(pointer, types.int64), emit


# ---------------------------------------------------------------- arithmetic

splat_f32 = unary(f32x16, types.float32, lambda builder, x: splat(builder, x, LANES))
splat_i32 = unary(i32x16, types.int32, lambda builder, x: splat(builder, x, LANES))
to_f32 = unary(f32x16, i32x16, lambda builder, v: builder.sitofp(v, llvm_type(f32x16)))
widen = unary(f32x16, f16x16, lambda builder, v: builder.fpext(v, llvm_type(f32x16)))
widen_u8 = unary(f32x16, i8x16, lambda builder, v: builder.uitofp(v, llvm_type(f32x16)))
widen_i8 = unary(f32x16, i8x16, lambda builder, v: builder.sitofp(v, llvm_type(f32x16)))
words_of_bytes = unary(i32x16, i8x16, lambda builder, v: builder.zext(v, llvm_type(i32x16)))
words_of_halves = unary(i32x16, i16x16, lambda builder, v: builder.zext(v, llvm_type(i32x16)))
low_nibbles = unary(i8x16, i8x16, lambda builder, v: builder.and_(v, constant(i8x16, 15)))
low_twos = unary(i8x16, i8x16, lambda builder, v: builder.and_(v, constant(i8x16, 3)))
high_twos = unary(i8x16, i8x16, lambda builder, v: builder.lshr(v, constant(i8x16, 2)))  # of nibbles
high_nibbles = unary(i8x16, i8x16, lambda builder, v: builder.lshr(v, constant(i8x16, 4)))


def _upper_half(builder, v, sixteen, result):
    """float32 whose upper 16 bits are v's and whose lower are zero."""
    return builder.bitcast(builder.shl(builder.zext(v, sixteen.type), sixteen), result)


widen_upper_halves = unary(f32x16, i16x16, lambda builder, v: _upper_half(builder, v, constant(i32x16, 16), llvm_type(f32x16)))


def _widen_e4m3(builder, v):
    """The same bits as float16, whose exponents count from 8 more."""
    halves = builder.shl(builder.zext(v, llvm_type(i16x16)), constant(i16x16, 7))
    wide = builder.fpext(builder.bitcast(halves, llvm_type(f16x16)), llvm_type(f32x16))
    return builder.fmul(wide, constant(f32x16, 256.0))


# Floats of 8 bits without a sign: 4 bits of exponent, 3 of mantissa.
widen_e4m3 = unary(f32x16, i8x16, _widen_e4m3)


def _half_power(builder, e, one, shifts, result):
    """2**(e - 128): (e - 1) as the exponent, and below the normal floats 1/4 or 1/2 of the smallest one."""
    normal, small = shifts
    exponent, fraction = builder.shl(builder.sub(e, one), normal), builder.shl(builder.add(e, one), small)
    return builder.bitcast(builder.select(builder.icmp_signed(">", exponent, fraction), exponent, fraction), result)


half_powers = unary(
    f32x16,
    i8x16,
    lambda builder, v: _half_power(
        builder,
        builder.zext(v, llvm_type(i32x16)),
        constant(i32x16, 1),
        (constant(i32x16, 23), constant(i32x16, 21)),
        llvm_type(f32x16),
    ),
)
half_power = unary(
    types.float32,
    types.uint8,
    lambda builder, v: _half_power(builder, builder.zext(v, INT32), INT32(1), (INT32(23), INT32(21)), FLOAT),
)
float_of_upper_half = unary(types.float32, types.int16, lambda builder, v: _upper_half(builder, v, INT32(16), FLOAT))
negative = unary(f32x16, f32x16, lambda builder, v: builder.fneg(v))
narrow = unary(f16x16, f32x16, lambda builder, v: builder.fptrunc(v, llvm_type(f16x16)))
round_to_i32 = unary(
    i32x16,
    f32x16,
    lambda builder, v: builder.fptosi(call_llvm(builder, "llvm.rint.v16f32", v.type, v), llvm_type(i32x16)),
)
round_f32 = unary(f32x16, f32x16, lambda builder, v: call_llvm(builder, "llvm.rint.v16f32", v.type, v))
floor_f32 = unary(f32x16, f32x16, lambda builder, v: call_llvm(builder, "llvm.floor.v16f32", v.type, v))
abs_f32 = unary(f32x16, f32x16, lambda builder, v: call_llvm(builder, "llvm.fabs.v16f32", v.type, v))


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c, rounded once."""

    def emit(context, builder, signature, args):
        return call_llvm(builder, "llvm.fma.v16f32", llvm_type(f32x16), *args)

    return f32x16(f32x16, f32x16, f32x16), emit


def _maximum(builder, a, b):
    """b where either is not a number: one instruction, unlike LLVM's maxnum."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def max_f32x16(typing_context, a, b):
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: _maximum(builder, *args)


@intrinsic
def min_f32x16(typing_context, a, b):
    def emit(context, builder, signature, args):
        a, b = args
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def shift_right(typing_context, v, count):
    """Every lane of v, as an unsigned number, by `count` bits."""

    def emit(context, builder, signature, args):
        return builder.lshr(args[0], splat(builder, builder.trunc(args[1], INT32), LANES))

    return i32x16(i32x16, types.int64), emit


@intrinsic
def low_bits(typing_context, v, count):
    """The lowest `count` bits of every lane."""

    def emit(context, builder, signature, args):
        count = builder.trunc(args[1], INT32)
        mask = builder.sub(builder.shl(INT32(1), count), INT32(1))
        return builder.and_(args[0], splat(builder, mask, LANES))

    return i32x16(i32x16, types.int64), emit


@intrinsic
def store_i32_as_i8(typing_context, p, index, value):
    """Stores the lowest bytes of 16 int32 at p[index]."""

    def emit(context, builder, signature, args):
        bytes16 = ir.VectorType(BYTE, LANES)
        address = builder.bitcast(builder.gep(args[0], [args[1]]), bytes16.as_pointer())
        instruction = builder.store(builder.trunc(args[2], bytes16), address)
        instruction.align = 1
        return context.get_dummy_value()

    return types.void(pointer, types.int64, i32x16), emit


def _halve(builder, v, combine):
    """Combines lane i with lane i + n/2 until one is left: an order that depends on nothing but the lane count."""
    lanes = v.type.count
    while lanes > 1:
        lanes //= 2
        indices = ir.VectorType(INT32, lanes)
        low = builder.shuffle_vector(v, v, ir.Constant(indices, list(range(lanes))))
        high = builder.shuffle_vector(v, v, ir.Constant(indices, list(range(lanes, 2 * lanes))))
        v = combine(builder, low, high)
    return builder.extract_element(v, INT32(0))


sum_f32x16 = unary(types.float32, f32x16, lambda builder, v: _halve(builder, v, lambda b, x, y: b.fadd(x, y)))


def _fold(builder, u, v, groups, combine):
    """Of vectors that hold `groups` runs of lanes to be reduced: one vector with the runs of both, half as long."""
    run = LANES // groups
    indices = ir.VectorType(INT32, LANES)
    starts = [vector * LANES + group * run for vector in (0, 1) for group in range(groups)]
    low = [start + i for start in starts for i in range(run // 2)]
    high = [lane + run // 2 for lane in low]
    return combine(builder, *(builder.shuffle_vector(u, v, ir.Constant(indices, half)) for half in (low, high)))


def _finish(builder, v, groups, combine):
    """The reduced runs of v as scalars."""
    run = LANES // groups
    while run > 1:
        run //= 2
        moved = ir.Constant(ir.VectorType(INT32, LANES), [(lane + run) % LANES for lane in range(LANES)])
        v = combine(builder, v, builder.shuffle_vector(v, v, moved))
    return [builder.extract_element(v, INT32(group * (LANES // groups))) for group in range(groups)]


@intrinsic
def largest_of_two(typing_context, u, v):
    """(largest lane of u, largest lane of v)."""

    def emit(context, builder, signature, args):
        found = _finish(builder, _fold(builder, *args, 1, _maximum), 2, _maximum)
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.float32, 2)(f32x16, f32x16), emit


@intrinsic
def sums_of_four(typing_context, a, b, c, d):
    """The sums of the lanes of each, exact in int32."""

    def emit(context, builder, signature, args):
        def add(builder, x, y):
            return builder.add(x, y)

        a, b, c, d = args
        two = [_fold(builder, u, v, 1, add) for u, v in ((a, b), (c, d))]
        found = _finish(builder, _fold(builder, *two, 2, add), 4, add)
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int32, 4)(i32x16, i32x16, i32x16, i32x16), emit


largest = unary(types.float32, f32x16, lambda builder, v: _halve(builder, v, _maximum))


@intrinsic
def keep_lanes(typing_context, num_lanes, kept, other):
    """Lane i is kept[i] for i < num_lanes, else other[i]."""

    def emit(context, builder, signature, args):
        count = splat(builder, builder.trunc(args[0], INT32), LANES)
        lane = ir.Constant(count.type, list(range(LANES)))
        return builder.select(builder.icmp_signed("<", lane, count), args[1], args[2])

    return f32x16(types.int64, f32x16, f32x16), emit


@intrinsic
def keep_bits(typing_context, bits, kept, other):
    """Lane i is kept[i] where bit i is set, else other[i]."""

    def emit(context, builder, signature, args):
        chosen = builder.bitcast(args[0], ir.VectorType(ir.IntType(1), LANES))
        return builder.select(chosen, args[1], args[2])

    return f32x16(types.int16, f32x16, f32x16), emit


@intrinsic
def lane(typing_context, v, i):
    """v[i]."""

    def emit(context, builder, signature, args):
        return builder.extract_element(args[0], builder.trunc(args[1], INT32))

    return types.float32(f32x16, types.int64), emit


@intrinsic
def with_lane(typing_context, v, i, value):
    """v with v[i] = value."""

    def emit(context, builder, signature, args):
        return builder.insert_element(args[0], args[2], builder.trunc(args[1], INT32))

    return f32x16(f32x16, types.int64, types.float32), emit


@intrinsic
def bits_of(typing_context, v):
    """Bit i is set where lane i is above zero; 16 bits."""

    def emit(context, builder, signature, args):
        above = builder.fcmp_ordered(">", args[0], constant(f32x16, 0.0))
        return builder.zext(builder.bitcast(above, INT16), INT32)

    return types.int32(f32x16), emit


def nearest_of(values, codes):
    """Intrinsic nearest(v): for each lane the code of the closest of the ascending values, as float32, and that value."""

    def emit(context, builder, signature, args):
        vector = args[0]
        code, value = constant(f32x16, float(codes[0])), constant(f32x16, float(values[0]))
        for (low, high), higher in zip(itertools.pairwise(float(value) for value in values), codes[1:], strict=True):
            above = builder.fcmp_ordered(">", vector, constant(f32x16, (low + high) / 2))
            code = builder.select(above, constant(f32x16, float(higher)), code)
            value = builder.select(above, constant(f32x16, high), value)
        return context.make_tuple(builder, signature.return_type, [code, value])

    @intrinsic
    def nearest(typing_context, v):
        return types.UniTuple(f32x16, 2)(f32x16), emit

    return nearest


def _define(op, vector, method):
    @type_callable(op)
    def typer(context):
        def resolve(a, b):
            if a == vector and b == vector:
                return vector

        return resolve

    @lower_builtin(op, vector, vector)
    def lower(context, builder, signature, args):
        return getattr(builder, method)(*args)


for _op, _method in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _define(_op, f32x16, _method)
for _op, _method in ((operator.add, "add"), (operator.sub, "sub"), (operator.and_, "and_"), (operator.or_, "or_")):
    _define(_op, i32x16, _method)
_define(operator.xor, i8x64, "xor")
