"""Attention to the tokens that an indexer chooses (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556): of each token a small key is
kept; a few heads of a row give each earlier token a score, and the row's attention sees those of the highest scores alone. Where
a key stands for several tokens (pools.py), these are chosen together, and the last ones, which have no key yet, are always seen.

Latent rows and the indexer's keys are float16. A row that has no more tokens behind it than are chosen sees all.
"""

from numatp.kernels.caches import f16
from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32, int64
from numatp.kernels.layout import CACHE_BLOCK, SCORES_PITCH
from numatp.kernels.norm import mean_and_inverse_deviation
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.row_attention import attend_heads, attention, heads_together, join_heads, load_heads, store_heads
from numatp.kernels.rows import GROUP, with_rows
from numatp.kernels.scratch import state_of
from numatp.kernels.simd import (
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i16,
    load_i32,
    load_i64,
    max_f32x16,
    offset,
    splat_f32,
    store_f16x16,
    store_f32x16,
    store_i16,
    store_i64,
)

RUN = 8  # blocks whose scores are one thread's piece of work
BITS, BINS = 12, 4096  # of a rank that are counted at once, and numbers that these make


@device
def normalize_key(x, size, weight, bias, epsilon):
    """x (size,) in place: the mean taken off, normalised."""
    mean, inverse = mean_and_inverse_deviation(x, size, epsilon)
    for i in range(0, size, 16):
        scaled = (load_f32x16(x, i) - mean) * inverse
        store_f32x16(x, i, scaled * load_f32x16(weight, i) + load_f32x16(bias, i))


@kernel(
    x="pointer", x_stride="int", rows="pointer", size="int", weight="pointer", bias="pointer", epsilon="float", angles="pointer",
    pairs="int", step="int", apart="int", positions="pointer", sequences="pointer", tables="pointer", table_length="int",
    keys="pointer", block_stride="int",
)  # fmt: skip
def append_index(args, thread, threads):
    """x (rows, size) in place: the mean taken off, normalised, the first pairs rotated; kept as keys (size, CACHE_BLOCK)."""
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride)
        normalize_key(x, args.size, args.weight, args.bias, args.epsilon)
        rotate_pairs(x, offset(args.angles, row * args.pairs * 8), args.pairs, args.step, args.apart)
        block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
        f16.store_key(offset(args.keys, block * args.block_stride), place, args.size, x)


@kernel(
    q="pointer", q_stride="int", rows="pointer", heads="int", size="int", angles="pointer", pairs="int", step="int", apart="int",
)  # fmt: skip
def rotate_heads(args, thread, threads):
    """The first pairs of each head of q (rows, heads, size), in place."""
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        q = offset(args.q, row * args.q_stride + head * args.size * 4)
        rotate_pairs(q, offset(args.angles, row * args.pairs * 8), args.pairs, args.step, args.apart)


@kernel(
    q="pointer", q_stride="int", rows="pointer", heads="int", size="int", weights="pointer", weights_stride="int",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", block_stride="int", top="int",
    scratch="pointer", scratch_stride="int", scores="pointer",
)  # fmt: skip
def score_tokens(args, thread, threads):
    """scores (rows, tokens of a table) = sum over heads of weight * max(q k, 0), times what all have in common, for rows with more
    than `top` tokens; q (rows, heads, size), weights (rows, heads). Sums are of heads one after another, whoever makes them.
    """
    scratch, unit = offset(args.scratch, thread * args.scratch_stride), int64(0)
    state = state_of(scratch, 0, GROUP)
    for row in range(load_i64(args.rows, 0)):
        position = load_i64(args.positions, row)
        if position < args.top:
            continue
        table = offset(args.tables, load_i64(args.sequences, row) * args.table_length * 8)
        blocks = position // CACHE_BLOCK + 1
        for start in range(0, blocks, RUN):
            unit += 1
            if unit % threads != thread:
                continue
            stop = min(start + RUN, blocks)
            for head in range(0, args.heads, GROUP):
                count = min(args.heads - head, GROUP)
                q = offset(args.q, row * args.q_stride + head * args.size * 4)
                weights = offset(args.weights, row * args.weights_stride + head * 4)
                attention.load_queries(state, q, args.size * 4, count, args.size, 0, float32(1))
                for block in range(start, stop):
                    keys = offset(args.keys, load_i64(table, block) * args.block_stride)
                    with_rows(count, f16.score, scratch, state, keys, args.size, keys)
                    out = offset(args.scores, (row * args.table_length + block) * CACHE_BLOCK * 4)
                    for t in range(0, CACHE_BLOCK, 16):
                        total = splat_f32(0) if head == 0 else load_f32x16(out, t)
                        for m in range(count):
                            s = max_f32x16(load_f32x16(offset(scratch, m * SCORES_PITCH), t), splat_f32(0))
                            total = total + splat_f32(load_f32(weights, m)) * s
                        store_f32x16(out, t, total)


@device
def rank_of(scores, i):
    """An integer, 0 or more, that is higher for a higher float."""
    bits = int64(load_i32(scores, i))
    return (bits if bits >= 0 else -(bits & 0x7FFFFFFF)) + 0x80000000


@device
def clear(bins):
    for i in range(BINS):
        store_i64(bins, i, 0)


@device
def count_in(bins, place):
    store_i64(bins, place, load_i64(bins, place) + 1)


@device
def bin_of(bins, left):
    """(the bin of the left-th highest, how many of those in it are among the `left` highest)."""
    place = int64(BINS - 1)
    while place > 0 and load_i64(bins, place) < left:
        left -= load_i64(bins, place)
        place -= 1
    return place, left


@device
def lowest_chosen(scores, count, top, bins):
    """(rank of the top-th highest of `count` scores, how many of that rank are among the `top`). bins: for counts, and behind them
    for `count` ranks.
    """
    ranks, kept = offset(bins, BINS * 8), int64(0)
    clear(bins)
    for i in range(count):
        count_in(bins, rank_of(scores, i) >> (32 - BITS))
    found, left = bin_of(bins, int64(top))
    for i in range(count):
        rank = rank_of(scores, i)
        if rank >> (32 - BITS) == found:
            store_i64(ranks, kept, rank)
            kept += 1
    shift = int64(32 - BITS)
    while shift > 0:  # the next bits, of those that are left
        bits = min(shift, BITS)
        shift -= bits
        clear(bins)
        for i in range(kept):
            rank = load_i64(ranks, i)
            if rank >> (shift + bits) == found:
                count_in(bins, (rank >> shift) & ((1 << bits) - 1))
        place, left = bin_of(bins, left)
        found = (found << bits) + place
    return found, left


@kernel(
    scores="pointer", pitch="int", rows="pointer", positions="pointer", every="int", top="int", bins="pointer", bins_stride="int",
    chosen="pointer",
)  # fmt: skip
def choose_tokens(args, thread, threads):
    """chosen int64 (rows, top): the numbers of the highest scores (rows, pitch), ascending, of rows with more than `top`; else of
    all, then -1. A row has one score for every so many tokens up to its own.

    Of equals the first are taken. bins: of each thread, for BINS counts and a rank of each score.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        count, slot = (load_i64(args.positions, row) + 1) // args.every, row * args.top
        if count <= args.top:
            for i in range(args.top):
                store_i64(args.chosen, slot + i, i if i < count else -1)
        else:
            scores = offset(args.scores, row * args.pitch * 4)
            lowest, left = lowest_chosen(scores, count, args.top, offset(args.bins, thread * args.bins_stride))
            for i in range(count):
                rank = rank_of(scores, i)
                if rank > lowest or (rank == lowest and left > 0):
                    if rank == lowest:
                        left -= 1
                    store_i64(args.chosen, slot, i)
                    slot += 1


@device
def sees_all(args, position):
    """Whether a row has no more whole runs of tokens than are chosen."""
    return (position + 1) // args.every <= args.top


@device
def tokens_seen(args, position):
    """How many tokens a row sees: those of `top` runs, and those after the last whole run."""
    return position + 1 if sees_all(args, position) else args.top * args.every + (position + 1) % args.every


@device
def token_at(args, chosen, item, tokens, position):
    """The position of one of the tokens that a row sees which does not see all."""
    run = item // args.every
    return load_i64(chosen, run) * args.every + item % args.every if run < args.top else position + 1 - (tokens - item)


@device
def gather(args, table, chosen, first, count, tokens, row_position, keys, values):
    """Of `count` tokens that a row sees, from the first on, the keys (head_size, CACHE_BLOCK) and values (CACHE_BLOCK, value_size),
    as a block has them.
    """
    for i in range(count):
        position = token_at(args, chosen, first + i, tokens, row_position)
        start, place = load_i64(table, position // CACHE_BLOCK) * args.block_stride, position % CACHE_BLOCK
        own_keys, own_values = offset(args.keys, start), offset(args.values, start + place * args.value_size * 2)
        for d in range(0, args.value_size, 16):
            store_f16x16(offset(values, i * args.value_size * 2), d, load_f16x16(own_values, d))
        for d in range(args.value_size):  # a key begins with what the value is
            store_i16(keys, d * CACHE_BLOCK + i, load_i16(own_values, d))
        for d in range(args.value_size, args.head_size):
            store_i16(keys, d * CACHE_BLOCK + i, load_i16(own_keys, d * CACHE_BLOCK + place))


@device
def attend_row(args, scratch, room, table, row, position, parts, first, last, split, num_splits):
    """Blocks [first, last) of what one row sees, for all heads."""
    size, value_size = args.head_size, args.value_size
    all_seen, tokens = sees_all(args, position), tokens_seen(args, position)
    chosen, values = offset(args.chosen, row * args.top * 8), offset(room, size * CACHE_BLOCK * 2)
    together = heads_together(args.heads)
    for begin in range(0, args.heads, together):
        end = min(begin + together, args.heads)
        load_heads(args, scratch, row, begin, end, size, value_size)
        for block in range(first, last):
            seen = min(tokens - block * CACHE_BLOCK, CACHE_BLOCK)
            start = load_i64(table, block) * args.block_stride if all_seen else 0
            if not all_seen:
                gather(args, table, chosen, block * CACHE_BLOCK, seen, tokens, position, room, values)
            own_keys = offset(args.keys, start) if all_seen else room
            own_values = offset(args.values, start) if all_seen else values
            attend_heads(args, scratch, begin, end, own_keys, own_values, size, value_size, seen)
        store_heads(args, scratch, row, begin, end, value_size, parts, split, num_splits)


@kernel(
    q="pointer", q_stride="int", heads="int", head_size="int", value_size="int", scale="float", spans="pointer",
    num_spans="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer", block_stride="int",
    chosen="pointer", top="int", every="int", scratch="pointer", scratch_stride="int", room="pointer", room_stride="int",
    parts="pointer", finished="pointer", out="pointer",
)  # fmt: skip
def sparse_attention(args, thread, threads):
    """out (rows, heads, value_size) = softmax(scale * q k) v over the tokens that a row has chosen, where all heads read the same
    keys and values, and a key begins with the value. Parts of a row that decodes and their order are as in attention.attention.

    chosen: see choose_tokens, of runs of `every` tokens. room: for a block of keys and values of each thread.
    """
    scratch, room = offset(args.scratch, thread * args.scratch_stride), offset(args.room, thread * args.room_stride)
    part_size, unit = (attention.PART_HEAD + args.value_size) * 4, int64(0)
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, first_row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        table = offset(args.tables, sequence * args.table_length * 8)
        parts = offset(args.parts, number * args.heads * attention.SPLITS * part_size)
        for row in range(rows):
            blocks = (tokens_seen(args, position + row) + CACHE_BLOCK - 1) // CACHE_BLOCK
            num_splits = min(blocks, attention.SPLITS) if rows == 1 else 1
            for split in range(num_splits):
                unit += 1
                if unit % threads != thread:
                    continue
                first, last = share(blocks, split, num_splits)
                attend_row(
                    args, scratch, room, table, first_row + row, position + row, parts, first, last, split, num_splits,
                )  # fmt: skip
                join_heads(args, number, first_row, args.value_size, parts, num_splits)
