"""Attention over a cache in blocks, whose type specialize() sets (kernels/caches).

The softmax is the online one of kernels/softmax.py, to the base 2: queries are multiplied by scale / ln 2 first.

Queries that read the same keys are taken together: the rows of a prompt that follow each other, one head at a time, or in a row of
its own (decoding) the heads that share a KV head. A single row may see a long past, so its blocks are cut into at most SPLITS
parts for different threads; whoever finishes last adds the parts up, always in the same order. Neither the cut nor the order
depends on the number of threads. Within a part all KV heads of a block come before the next block, because they lie side by side:
long runs of memory are what a processor's own prefetching needs. Rows of prompts that go through tile registers are
kernels/tiled_attention.py's.
"""

from types import ModuleType

from numatp.kernels.compile import called, device, kernel, share
from numatp.kernels.exp import LOG2_E, exp2
from numatp.kernels.heads import first_seen, heads_of, keys_of, values_of
from numatp.kernels.jit import float32, int64
from numatp.kernels.layout import CACHE_BLOCK, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.rows import GROUP, MANY, num_long, num_many, room_for, with_rows
from numatp.kernels.scratch import HIGHEST, STATE_ROWS, TOTAL, corrections_of, state_of, sums_of
from numatp.kernels.simd import (
    fetch_add,
    fma,
    lane,
    load_f32,
    load_f32x16,
    load_i64,
    offset,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    sum_f32x16,
)
from numatp.kernels.softcap import cap_rows
from numatp.kernels.softmax import LOWEST, weigh

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it
SPLITS = 16
PART_HEAD = 16  # floats before the values of a part: its highest score, its total and, while parts are joined, its weight


def part_bytes(head_size: int) -> int:
    """Bytes of one part of one query head."""
    return (PART_HEAD + head_size) * 4


if MANY:
    from numatp.kernels.tiled_attention import prompt_attender

    attend_on_tiles = prompt_attender(cache)
else:

    @device
    def attend_on_tiles(args, scratch, panels, table, row, rows, position, unit, thread, threads):
        return unit  # never called: no row goes through tile registers


@device
def load_queries(state, q, stride, count, size, value_size, scale):
    """`count` queries, `stride` bytes apart, times scale / ln 2, as the cache wants them, and sums of nothing."""
    room, factor = room_for(count), splat_f32(scale * float32(LOG2_E))
    for m in range(room):
        row = offset(state, m * QUERY_PITCH)
        for d in range(0, size, 16):
            store_f32x16(row, d, load_f32x16(offset(q, m * stride), d) * factor if m < count else splat_f32(0))
        for d in range(0, value_size, 16):
            store_f32x16(sums_of(row), d, splat_f32(0))
        store_f32x16(offset(row, TOTAL), 0, splat_f32(0))
        store_f32(offset(row, HIGHEST), 0, float32(LOWEST))
    cache.prepare(state, size, room)


@device
def add_sinks(state, sinks, count, step):
    """Lets query m see one more token of score sinks[m * step] and no value, before all others."""
    for m in range(count):
        row = offset(state, m * QUERY_PITCH)
        store_f32(offset(row, HIGHEST), 0, load_f32(sinks, m * step) * float32(LOG2_E))
        store_f32(offset(row, TOTAL), 0, float32(1))


@device
def softmax(scratch, state, m, unseen, seen):
    """Turns the scores of query m over a block into weights, as if this were the last block; it sees the tokens [unseen, seen)."""
    row = offset(state, m * QUERY_PITCH)
    correction = weigh(offset(scratch, m * SCORES_PITCH), unseen, seen, offset(row, TOTAL), offset(row, HIGHEST))
    store_f32(corrections_of(scratch), m, correction)


@called
def attend(args, scratch, state, table, block, kv_head, next_block, next_kv_head, count, position, step):
    """Online softmax of the `count` queries of a state over one block; query m is at position + m * step. next_block,
    next_kv_head: of what is wanted from memory next.
    """
    keys, next_keys = keys_of(args, table, block, kv_head), keys_of(args, table, next_block, next_kv_head)
    values, next_values = values_of(args, table, block, kv_head), values_of(args, table, next_block, next_kv_head)
    tokens = min(position + (count - 1) * step + 1 - block * CACHE_BLOCK, CACHE_BLOCK)
    with_rows(count, cache.score, scratch, state, keys, args.head_size, next_keys)
    if args.cap > 0:
        cap_rows(scratch, SCORES_PITCH, count, CACHE_BLOCK, args.cap * float32(LOG2_E))
    for m in range(count):
        seen = position + m * step + 1 - block * CACHE_BLOCK
        softmax(scratch, state, m, first_seen(args, position + m * step) - block * CACHE_BLOCK, seen)
    with_rows(count, cache.add_values, scratch, state, values, args.value_size, count, tokens, next_values)


@device
def total_of(state, m):
    return sum_f32x16(load_f32x16(offset(state, m * QUERY_PITCH + TOTAL), 0))


@device
def store_result(state, m, size, out):
    inverse = splat_f32(float32(1) / total_of(state, m))
    for d in range(0, size, 16):
        store_f32x16(out, d, load_f32x16(sums_of(offset(state, m * QUERY_PITCH)), d) * inverse)


@device
def store_part(state, m, size, part):
    store_f32(part, 0, load_f32(offset(state, m * QUERY_PITCH + HIGHEST), 0))
    store_f32(part, 1, total_of(state, m))
    for d in range(0, size, 16):
        store_f32x16(part, PART_HEAD + d, load_f32x16(sums_of(offset(state, m * QUERY_PITCH)), d))


@device
def join_parts(parts, num_parts, part_size, size, out):
    """The result of one query head from its parts."""
    highest, total = float32(LOWEST), float32(0)
    for i in range(num_parts):
        highest = max(highest, load_f32(offset(parts, i * part_size), 0))
    for i in range(num_parts):
        part = offset(parts, i * part_size)
        weight = lane(exp2(splat_f32(load_f32(part, 0) - highest)), 0)
        total += load_f32(part, 1) * weight
        store_f32(part, 2, weight)
    inverse = splat_f32(float32(1) / total)
    for d in range(0, size, 16):
        sums = splat_f32(0)
        for i in range(num_parts):
            part = offset(parts, i * part_size)
            sums = fma(splat_f32(load_f32(part, 2)), load_f32x16(part, PART_HEAD + d), sums)
        store_f32x16(out, d, sums * inverse)


@device
def attend_prompt(args, scratch, table, head, row, count, position):
    """Rows [row, row + count) of one sequence, one query head."""
    size, state = args.head_size, state_of(scratch, 0, GROUP)
    kv_head = (args.first_head + head) // args.group - args.first_kv_head
    q = offset(args.q, row * args.q_stride + head * size * 4)
    load_queries(state, q, args.q_stride, count, size, args.value_size, args.scale)
    if args.sunk:
        add_sinks(state, offset(args.sinks, head * 4), count, 0)
    last = (position + count - 1) // CACHE_BLOCK
    for block in range(first_seen(args, position) // CACHE_BLOCK, last + 1):
        attend(args, scratch, state, table, block, kv_head, min(block + 1, last), kv_head, count, position, int64(1))
    for m in range(count):
        out = offset(args.out, ((row + m) * args.heads + head) * args.value_size * 4)
        store_result(state, m, args.value_size, out)


@device
def attend_row(args, scratch, table, span, row, position, first_kv_head, last_kv_head, first, last, split, num_splits):
    """Blocks [first, last) of one row, for the query heads that read the KV heads [first_kv_head, last_kv_head)."""
    size, value_size, part_size = args.head_size, args.value_size, (PART_HEAD + args.value_size) * 4
    q, out = offset(args.q, row * args.q_stride), offset(args.out, row * args.heads * value_size * 4)
    parts = offset(args.parts, span * args.heads * SPLITS * part_size)
    pieces, end = (args.group + GROUP - 1) // GROUP, position // CACHE_BLOCK
    room = room_for(min(args.group, GROUP))
    states = STATE_ROWS // room
    for begin in range(first_kv_head * pieces, last_kv_head * pieces, states):
        stop = min(begin + states, last_kv_head * pieces)
        for piece in range(begin, stop):
            head, count = heads_of(args, piece, pieces, GROUP)
            if count > 0:
                state = state_of(scratch, piece - begin, room)
                load_queries(state, offset(q, head * size * 4), size * 4, count, size, value_size, args.scale)
                if args.sunk and split == 0:
                    add_sinks(state, offset(args.sinks, head * 4), count, 1)
        for block in range(first, last):
            for piece in range(begin, stop):
                head, count = heads_of(args, piece, pieces, GROUP)
                kv_head = piece // pieces
                next_block, next_kv_head = min(block + 1, end), 0  # of another part, perhaps on this thread
                if (kv_head + 1) * pieces < stop:
                    next_block, next_kv_head = block, kv_head + 1
                elif block + 1 < last:
                    next_block, next_kv_head = block + 1, begin // pieces
                elif stop < last_kv_head * pieces:
                    next_block, next_kv_head = first, stop // pieces
                if count > 0:
                    state = state_of(scratch, piece - begin, room)
                    attend(args, scratch, state, table, block, kv_head, next_block, next_kv_head, count, position, int64(0))
        for piece in range(begin, stop):
            head, count = heads_of(args, piece, pieces, GROUP)
            state = state_of(scratch, piece - begin, room)
            for m in range(count):
                if num_splits == 1:
                    store_result(state, m, value_size, offset(out, (head + m) * value_size * 4))
                else:
                    store_part(state, m, value_size, offset(parts, ((head + m) * SPLITS + split) * part_size))
    if num_splits > 1:
        for kv_head in range(first_kv_head, last_kv_head):
            finished = offset(args.finished, (span * args.kv_heads + kv_head) * 8)
            if fetch_add(finished, 1) == num_splits - 1:
                store_i64(finished, 0, 0)
                for piece in range(kv_head * pieces, (kv_head + 1) * pieces):
                    head, count = heads_of(args, piece, pieces, GROUP)
                    for h in range(head, head + count):
                        own, result = offset(parts, h * SPLITS * part_size), offset(out, h * value_size * 4)
                        join_parts(own, num_splits, part_size, value_size, result)


@kernel(
    q="pointer", q_stride="int", heads="int", kv_heads="int", head_size="int", value_size="int", first_head="int",
    first_kv_head="int", group="int", scale="float", window="int", chunked="int", spans="pointer", num_spans="pointer",
    tables="pointer", table_length="int", keys="pointer", values="pointer", block_stride="int", head_bytes="int", value_bytes="int",
    scratch="pointer", scratch_stride="int", parts="pointer", finished="pointer", sinks="pointer", sunk="int", cap="float",
    rows="pointer", tiled="int", panels="pointer", panels_thread_stride="int", out="pointer",
)  # fmt: skip
def attention(args, thread, threads):
    """out (rows, heads, value_size) = softmax(scale * q k) v over the `window` positions up to the row's own; chunked: of
    the row's own chunk of `window` positions, those up to it.

    sunk: the softmax of each head has one more term, exp(sinks[head]) (float32), whose value is zero. cap: of the
    scores (kernels/softcap.py), 0 for none; a sink has none.

    heads and kv_heads are this rank's; query head h of the model, h = first_head + local index, reads KV head h // group.
    spans: int64 (num_spans, 4), see program/step.py. Strides are bytes: from row to row of q, from block to block of the cache,
    from thread to thread of scratch (scratch_bytes() each). parts: (spans, heads, SPLITS, part_bytes); finished: int64
    (spans, kv_heads), zeros. rows: int64 (2,): how many, and how many of them, the first ones, are of long prompts, and go through
    tile registers where `tiled` allows it; panels: scratch memory of each thread for these.
    """
    many, long = num_many(args.rows) if args.tiled else int64(0), num_long(args.rows)
    panels = offset(args.panels, thread * args.panels_thread_stride)
    scratch = offset(args.scratch, thread * args.scratch_stride)
    unit = int64(0)  # one thread's piece of work
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        table = offset(args.tables, sequence * args.table_length * 8)
        if rows == 1 and row >= long:
            first = first_seen(args, position) // CACHE_BLOCK
            blocks = position // CACHE_BLOCK + 1 - first
            num_splits = min(blocks, SPLITS)
            # Parts that follow each other to one thread, which has asked for the next block's memory; other spans begin elsewhere.
            begin, end = share(args.kv_heads * num_splits, (thread + number) % threads, threads)
            if begin < end:
                for split in range(begin // args.kv_heads, (end - 1) // args.kv_heads + 1):
                    start, stop = share(blocks, split, num_splits)
                    attend_row(
                        args, scratch, table, number, row, position, max(begin - split * args.kv_heads, 0),
                        min(end - split * args.kv_heads, args.kv_heads), first + start, first + stop, split, num_splits,
                    )  # fmt: skip
        elif row < many:
            unit = attend_on_tiles(args, scratch, panels, table, row, rows, position, unit, thread, threads)
        else:
            for tile in range((rows + GROUP - 1) // GROUP):
                start = tile * GROUP
                for head in range(args.heads):
                    if unit % threads == thread:
                        count = min(rows - start, GROUP)
                        attend_prompt(args, scratch, table, head, row + start, count, position + start)
                    unit += 1
