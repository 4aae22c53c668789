"""AMX: products of many rows on tile registers, 16 rows of 64 bytes each; up to eight rows go on as with AVX-512 VNNI.

tdpbf16ps multiplies a tile of 16 activation rows x 32 columns with a panel's 16 weight rows x 32 columns (kernels/bf16.py) and adds
the 16 x 16 sums to a third tile; tdpbssd does that with bytes. Nobody but these functions gives tiles their numbers. For BF16 0 to
3 are sums, 4 and 5 rows, 6 and 7 weights; for bytes 0 are sums, 1 and 3 rows, 2 and 4 weights.
"""

from numatp.errors import MachineError
from numatp.kernels.isa.avx512vnni import DOT, GROUP, dot, dot_biased, gather, lookup, start, times_power
from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.simd import BYTE, INT64, call_llvm, pointer
from numatp.machine import tiles

__all__ = [
    "DOT", "GROUP", "MANY", "configure", "configure_bytes", "dot", "dot_biased", "gather", "lookup", "multiply_bytes", "release",
    "start", "times_power",
]  # fmt: skip

MANY = tiles.LONG_PROMPT  # with fewer, making panels costs what tiles save

if not tiles.permit():
    raise MachineError("this process may not use AMX, though a child of it might: set NUMATP_ISA=avx512vnni")


def tile(number):
    return ir.Constant(BYTE, number)


def configuration(rows):
    """Where `rows` rows are left, 1 to 32: the tiles of the first group of 16, those of the second, and the weights'."""
    first, second = min(rows, 16), rows - 16 if rows > 16 else 16
    return tiles.configuration([(rows, 64) for rows in (first, first, second, second, first, second, 16, 16)])


CONFIGURATIONS = b"".join(configuration(rows) for rows in range(1, 33))
# For bytes: 16 x 16 sums, then activations and weights of 32 columns, and those of 16: 16 rows of activations, and 4 columns of 16
# rows of weights in each 64 bytes.
BYTE_CONFIGURATION = tiles.configuration([(16, 64), (16, 32), (8, 64), (16, 16), (4, 64)])


def load_configuration(builder, stored, number):
    """The number-th of the configurations whose bytes are stored."""
    stored = ir.Constant(ir.ArrayType(BYTE, len(stored)), bytearray(stored))
    table = ir.GlobalVariable(builder.module, stored.type, builder.module.get_unique_name("tile_configurations"))
    table.initializer, table.global_constant, table.linkage = stored, True, "internal"
    place = builder.mul(number, INT64(tiles.CONFIGURATION_BYTES))
    call_llvm(builder, "llvm.x86.ldtilecfg", ir.VoidType(), builder.gep(builder.bitcast(table, BYTE.as_pointer()), [place]))


@intrinsic
def configure(typing_context, rows):
    """Of the calling thread, before it multiplies blocks of `rows` rows, 1 to 32: no others are read or written then."""

    def emit(context, builder, signature, args):
        load_configuration(builder, CONFIGURATIONS, builder.sub(args[0], INT64(1)))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def configure_bytes(typing_context):
    """Of the calling thread, before it multiplies bytes."""

    def emit(context, builder, signature, args):
        load_configuration(builder, BYTE_CONFIGURATION, INT64(0))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def release(typing_context):
    """Of the calling thread: tiles in use make its switches slower and keep the core awake."""

    def emit(context, builder, signature, args):
        call_llvm(builder, "llvm.x86.tilerelease", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), emit


def _move(builder, name, number, p, stride):
    call_llvm(builder, f"llvm.x86.{name}", ir.VoidType(), tile(number), p, stride)


def multiply_bytes(builder, vectors, x, weights, out):
    """int32 (16, 16) at out = int8 x, 16 rows 32 bytes apart, times int8 weights, 8 vectors of 4 columns of 16 rows, or 4."""
    x_tile, weights_tile = {8: (1, 2), 4: (3, 4)}[vectors]
    _move(builder, "tileloadd64", weights_tile, weights, INT64(64))
    _move(builder, "tileloadd64", x_tile, x, INT64(32))
    call_llvm(builder, "llvm.x86.tilezero", ir.VoidType(), tile(0))
    call_llvm(builder, "llvm.x86.tdpbssd", ir.VoidType(), tile(0), tile(x_tile), tile(weights_tile))
    _move(builder, "tilestored64", 0, out, INT64(64))


def block_of(groups, panels):
    """(start, start_from, add_unit, finish) of the sums of `groups` groups of 16 rows x `panels` panels, 1 or 2 of each.

    start(): zeros; start_from(out, stride, group): what is at out, float32 rows `stride` bytes apart, groups `group` bytes.
    add_unit(x, group, panel, apart): plus 32 columns at x of each group, `group` bytes apart, times each panel's, `apart` bytes.
    finish(out, stride, group): the sums to out.
    """
    sums = [(i, j, 2 * i + j) for i in range(groups) for j in range(panels)]

    def each_sum(name, builder, out, stride, group):
        for i, j, number in sums:
            place = builder.gep(out, [builder.add(builder.mul(group, INT64(i)), INT64(64 * j))])
            _move(builder, name, number, place, stride)

    @intrinsic
    def start(typing_context):
        def emit(context, builder, signature, args):
            for _, _, number in sums:
                call_llvm(builder, "llvm.x86.tilezero", ir.VoidType(), tile(number))
            return context.get_dummy_value()

        return types.void(), emit

    @intrinsic
    def start_from(typing_context, out, stride, group):
        def emit(context, builder, signature, args):
            each_sum("tileloadd64", builder, *args)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, types.int64), emit

    @intrinsic
    def add_unit(typing_context, x, group, panel, apart):
        def emit(context, builder, signature, args):
            x, group, panel, apart = args
            for j in range(panels):
                _move(builder, "tileloadd64", 6 + j, builder.gep(panel, [builder.mul(apart, INT64(j))]), INT64(64))
                for i in range(groups):
                    if j == 0:
                        _move(builder, "tileloadd64", 4 + i, builder.gep(x, [builder.mul(group, INT64(i))]), INT64(64))
                    call_llvm(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), tile(2 * i + j), tile(4 + i), tile(6 + j))
            return context.get_dummy_value()

        return types.void(pointer, types.int64, pointer, types.int64), emit

    @intrinsic
    def finish(typing_context, out, stride, group):
        def emit(context, builder, signature, args):
            each_sum("tilestored64", builder, *args)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, types.int64), emit

    return start, start_from, add_unit, finish
