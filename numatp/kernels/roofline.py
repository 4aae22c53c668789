"""What no kernel can beat: reading memory without computing, and dot products without reading memory.

Which way of reading is fastest differs between machines, so there are several and the best one counts. Memory is cut into one
part per thread; fill() touches it first. The sums that the loops leave prove that everything was read.
"""

import numpy as np

from numatp.kernels.compile import device, kernel
from numatp.kernels.dot import isa
from numatp.kernels.jit import int32, intrinsic, ir, types
from numatp.kernels.rows import MANY, Vectors
from numatp.kernels.simd import (
    INT32,
    call_llvm,
    i8x64,
    i32x16,
    load_f32x16,
    load_i8x64,
    load_i64,
    loader,
    offset,
    pointer,
    prefetch,
    round_to_i32,
    splat_i32,
    store_i64,
    storer,
)

UNIT = 2048  # bytes: parts are multiples of it
DOTS = 12 if isa.GROUP == 16 else 2  # independent sums: enough to hide the latency, few enough for the registers
DOT_TABLE = 1024  # bytes that the dot loop reads from, in the L1 cache
TABLE_TILES = 4  # on tile registers: two of rows and two panels
DOT_OPS = (4 * 16 * 16 * 32 if MANY else DOTS * 64) * 2  # multiplications and additions of one round
DOT_SUM = 4 if MANY else 4 * DOTS  # what a round adds to each lane of a thread's sums


def dot_table(threads: int) -> np.ndarray:
    """What the dot loop reads, on a 64-byte boundary, and room for the sums of tile registers behind it."""
    memory = np.ones(max(DOT_TABLE, 64 * DOTS, TABLE_TILES * 1024 + threads * 4096) + 64, np.uint8)
    table = memory[-memory.ctypes.data % 64 :]
    if MANY:
        # As BF16: of each row the first column is one, of each panel the first column of every row, all others are zero.
        tiles = table[: TABLE_TILES * 1024].view(np.uint16).reshape(TABLE_TILES, 16, 32)
        tiles[:] = 0
        tiles[:2, :, 0] = tiles[2:, 0, ::2] = 0x3F80
    return table


load_i32x16, store_i32x16 = loader(i32x16, INT32, 4), storer(i32x16, INT32, 4)


@intrinsic
def prefetch_once(typing_context, p, num_bytes):
    """As prefetch, for a line that is read once: it should push nothing out of the caches."""

    def emit(context, builder, signature, args):
        call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), builder.gep(args[0], [args[1]]), INT32(0), INT32(0), INT32(1))
        return context.get_dummy_value()

    return types.void(pointer, types.int64), emit


@kernel(memory="pointer", part_bytes="int")
def fill(args, thread, threads):
    """Every thread writes int32 ones into its part."""
    part, one = offset(args.memory, thread * args.part_bytes), splat_i32(int32(1))
    for i in range(0, args.part_bytes // 4, 16):
        store_i32x16(part, i, one)


# What all loops are told through `control`, so that rank 0 decides for all ranks: rounds; bytes that a thread reads from the start
# of its part; threads of a rank and ranks that work at all. Each working thread stores 16 sums of int32, 128 bytes apart.
ROUNDS, NUM_BYTES, THREADS, RANKS, CONTROL_WORDS = 0, 1, 2, 3, 4


@device
def works(control, rank, thread):
    return thread < load_i64(control, THREADS) and rank < load_i64(control, RANKS)


@kernel(memory="pointer", part_bytes="int", rank="int", control="pointer", sums="pointer", ahead="int")
def read(args, thread, threads):
    """Only loads: the hardware prefetches."""
    if works(args.control, args.rank, thread):
        part = offset(args.memory, thread * args.part_bytes)
        a = b = c = d = splat_i32(int32(0))
        for _ in range(load_i64(args.control, ROUNDS)):
            for i in range(0, load_i64(args.control, NUM_BYTES) // 4, 128):
                a = a + load_i32x16(part, i)
                b = b + load_i32x16(part, i + 16)
                c = c + load_i32x16(part, i + 32)
                d = d + load_i32x16(part, i + 48)
                a = a + load_i32x16(part, i + 64)
                b = b + load_i32x16(part, i + 80)
                c = c + load_i32x16(part, i + 96)
                d = d + load_i32x16(part, i + 112)
        store_i32x16(args.sums, thread * 32, a + b + (c + d))


@device
def ask(p, num_bytes, once):
    if once:
        prefetch_once(p, num_bytes)
    else:
        prefetch(p, num_bytes)


@device
def read_asking(args, thread, once):
    """Asks for each line `ahead` bytes before it is read."""
    if works(args.control, args.rank, thread):
        part = offset(args.memory, thread * args.part_bytes)
        a = b = c = d = splat_i32(int32(0))
        for _ in range(load_i64(args.control, ROUNDS)):
            for i in range(0, load_i64(args.control, NUM_BYTES) // 4, 64):
                coming = offset(part, i * 4 + args.ahead)
                ask(coming, 0, once)
                a = a + load_i32x16(part, i)
                ask(coming, 64, once)
                b = b + load_i32x16(part, i + 16)
                ask(coming, 128, once)
                c = c + load_i32x16(part, i + 32)
                ask(coming, 192, once)
                d = d + load_i32x16(part, i + 48)
        store_i32x16(args.sums, thread * 32, a + b + (c + d))


@kernel(memory="pointer", part_bytes="int", rank="int", control="pointer", sums="pointer", ahead="int")
def read_ahead(args, thread, threads):
    """With prefetching."""
    read_asking(args, thread, False)


@kernel(memory="pointer", part_bytes="int", rank="int", control="pointer", sums="pointer", ahead="int")
def read_once(args, thread, threads):
    """The same past the caches, as far as the machine does that."""
    read_asking(args, thread, True)


@kernel(memory="pointer", part_bytes="int", rank="int", control="pointer", sums="pointer", ahead="int")
def read_streams(args, thread, threads):
    """Four streams side by side, each a quarter of the part, with prefetching."""
    if works(args.control, args.rank, thread):
        part, quarter = offset(args.memory, thread * args.part_bytes), load_i64(args.control, NUM_BYTES) // 4
        a = b = c = d = splat_i32(int32(0))
        first, second = part, offset(part, quarter)
        third, fourth = offset(part, 2 * quarter), offset(part, 3 * quarter)
        for _ in range(load_i64(args.control, ROUNDS)):
            for i in range(0, quarter // 4, 32):
                ahead = i * 4 + args.ahead
                prefetch(first, ahead)
                prefetch(first, ahead + 64)
                a = a + load_i32x16(first, i) + load_i32x16(first, i + 16)
                prefetch(second, ahead)
                prefetch(second, ahead + 64)
                b = b + load_i32x16(second, i) + load_i32x16(second, i + 16)
                prefetch(third, ahead)
                prefetch(third, ahead + 64)
                c = c + load_i32x16(third, i) + load_i32x16(third, i + 16)
                prefetch(fourth, ahead)
                prefetch(fourth, ahead + 64)
                d = d + load_i32x16(fourth, i) + load_i32x16(fourth, i + 16)
        store_i32x16(args.sums, thread * 32, a + b + (c + d))


@intrinsic
def load_weights(typing_context, p):
    """DOTS vectors that lie one after the other."""

    def emit(context, builder, signature, args):
        weights = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for i in range(DOTS):
            address = builder.bitcast(builder.gep(args[0], [ir.IntType(64)(64 * i)]), ir.VectorType(ir.IntType(8), 64).as_pointer())
            vector = builder.load(address)
            vector.align = 1
            weights = builder.insert_value(weights, vector, i)
        return weights

    return Vectors(i8x64, DOTS)(pointer), emit


@intrinsic
def zero_totals(typing_context):
    kind = Vectors(i32x16, DOTS)
    return kind(), lambda context, builder, signature, args: ir.Constant(context.get_value_type(kind), None)


@intrinsic
def dot_all(typing_context, totals, weights, x):
    """totals[i] + weights[i] . x, by the instruction set's own dot product."""

    def emit(context, builder, signature, args):
        totals, weights, x = args
        for i in range(DOTS):
            total = isa.dot(builder, builder.extract_value(totals, i), builder.extract_value(weights, i), x)
            totals = builder.insert_value(totals, total, i)
        return totals

    return totals(totals, weights, i8x64), emit


@intrinsic
def sum_totals(typing_context, totals):
    def emit(context, builder, signature, args):
        total = builder.extract_value(args[0], 0)
        for i in range(1, DOTS):
            total = builder.add(total, builder.extract_value(args[0], i))
        return total

    return i32x16(totals), emit


if not MANY:

    @kernel(table="pointer", rank="int", control="pointer", sums="pointer")
    def dot(args, thread, threads):
        """DOTS dot products of 64 bytes a round, in registers but for one operand from a table (DOT_TABLE,) in the L1 cache.

        From the table, so that no compiler finds a product that it can take out of the loop.
        """
        if works(args.control, args.rank, thread):
            totals, weights = zero_totals(), load_weights(args.table)
            for i in range(load_i64(args.control, ROUNDS)):
                totals = dot_all(totals, weights, load_i8x64(args.table, (i * 64) & (DOT_TABLE - 64)))
            store_i32x16(args.sums, thread * 32, sum_totals(totals))
else:
    from numatp.kernels.isa.amx import block_of, configure, release

    start, _, add_unit, finish = block_of(2, 2)

    @kernel(table="pointer", rank="int", control="pointer", sums="pointer")
    def dot(args, thread, threads):
        """Four products of tile registers a round: two groups of rows x two panels from the table, in the L1 cache.

        Each adds one to every sum, which float32 counts up to 2**24.
        """
        if works(args.control, args.rank, thread):
            room = offset(args.table, TABLE_TILES * 1024 + thread * 4096)
            configure(32)
            start()
            for _ in range(load_i64(args.control, ROUNDS)):
                add_unit(args.table, 1024, offset(args.table, 2048), 1024)
            finish(room, 128, 2048)
            release()
            total = (load_f32x16(room, 0) + load_f32x16(room, 16)) + (load_f32x16(room, 512) + load_f32x16(room, 528))
            store_i32x16(args.sums, thread * 32, round_to_i32(total))


@kernel(memory="pointer", part_bytes="int", rounds="int")
def copy(args, thread, threads):
    """Every thread copies the first half of its part onto the second."""
    half = args.part_bytes // 2
    source = offset(args.memory, thread * args.part_bytes)
    target = offset(source, half)
    for _ in range(args.rounds):
        for i in range(0, half // 4, 64):
            store_i32x16(target, i, load_i32x16(source, i))
            store_i32x16(target, i + 16, load_i32x16(source, i + 16))
            store_i32x16(target, i + 32, load_i32x16(source, i + 32))
            store_i32x16(target, i + 48, load_i32x16(source, i + 48))


@kernel(memory="pointer", steps="int", last="pointer")
def chase(args, thread, threads):
    """Thread 0 follows a chain of int64 indices from memory[0] on; where it ends goes to `last`, so that every step is taken."""
    if thread == 0:
        place = load_i64(args.memory, 0)
        for _ in range(args.steps):
            place = load_i64(args.memory, place)
        store_i64(args.last, 0, place)
