"""Attention of prompts' rows on tile registers (isa/amx.py): scores and sums of values are products of BF16, the softmax between
them is float32.

Up to 32 rows of some query heads that read the same KV head are taken together. For all of them a block of keys and one of values
become BF16 panels once (`expand_keys` and `expand_values` of the cache's type). Two columns that a tile register holds side by side
are i and i + 16 of 32, on both sides of a product. A row's result does not depend on the rows and heads beside it.
"""

from numatp.kernels.compile import device
from numatp.kernels.exp import LOG2_E
from numatp.kernels.heads import first_seen, heads_of, keys_of, values_of
from numatp.kernels.isa.amx import configure, release
from numatp.kernels.jit import float32
from numatp.kernels.layout import CACHE_BLOCK, PANEL_UNIT_BYTES, SCORES_PITCH
from numatp.kernels.pairs import store_pair
from numatp.kernels.panels import PANEL_BYTES, ROWS, multiply_block
from numatp.kernels.scratch import (
    TILED_FACTORS,
    TILED_HEADS,
    TILED_ROWS,
    TILED_STATES,
    TILED_TAIL,
)
from numatp.kernels.simd import load_f32, load_f32x16, offset, splat_f32, store_f32, store_f32x16, sum_f32x16
from numatp.kernels.softcap import cap_rows
from numatp.kernels.softmax import LOWEST, weigh

WEIGHT_UNITS = CACHE_BLOCK // 32  # of a query's weights
VALUES_AT = PANEL_BYTES - WEIGHT_UNITS * PANEL_UNIT_BYTES  # of the i-th panel of values, behind the i-th one of keys


@device
def load_queries(args, state, sums, pitch, q, q_stride, count, highest, total):
    """`count` rows of a head, q_stride bytes apart, times scale / ln 2 as BF16 in groups of 16 rows, and sums of nothing, of which
    the highest score and the sum of weights are given.
    """
    size, factor = args.head_size, splat_f32(args.scale * float32(LOG2_E))
    units = (size + 31) // 32
    for m in range(count):
        row = offset(q, m * q_stride)
        for unit in range(units):
            low, high = load_f32x16(row, unit * 32) * factor, splat_f32(0)
            if unit * 32 + 16 < size:
                high = load_f32x16(row, unit * 32 + 16) * factor
            store_pair(offset(state, (m // ROWS * units + unit) * PANEL_UNIT_BYTES + m % ROWS * 64), low, high)
        mine = offset(sums, m * pitch)
        for d in range(0, args.value_size + 16, 16):  # and the sum of the weights behind them
            store_f32x16(mine, d, splat_f32(0))
        store_f32(mine, args.value_size, total)
        store_f32(mine, args.value_size + 16, highest)


@device
def attend_block(args, scratch, panels, queries, sums, pitch, block, count, position):
    """Online softmax of rows at `position` and behind it over the block whose panels are there."""
    units, two_groups = (args.head_size + 31) // 32, count > ROWS
    weights = offset(scratch, TILED_FACTORS)
    for tile in range(0, CACHE_BLOCK // 16, 2):
        multiply_block(
            two_groups, 2, queries, units * PANEL_UNIT_BYTES, offset(panels, tile * PANEL_BYTES), units,
            offset(scratch, tile * 64), SCORES_PITCH, False,
        )  # fmt: skip
    if args.cap > 0:
        cap_rows(scratch, SCORES_PITCH, count, CACHE_BLOCK, args.cap * float32(LOG2_E))
    for m in range(count):
        scores, mine = offset(scratch, m * SCORES_PITCH), offset(sums, m * pitch)
        seen = position + m + 1 - block * CACHE_BLOCK
        total_at = offset(mine, args.value_size * 4)
        unseen = first_seen(args, position + m) - block * CACHE_BLOCK
        correction = weigh(scores, unseen, seen, total_at, offset(total_at, 64))
        if correction != float32(1):
            for d in range(0, args.value_size, 16):
                store_f32x16(mine, d, load_f32x16(mine, d) * splat_f32(correction))
        group = offset(weights, m // ROWS * WEIGHT_UNITS * PANEL_UNIT_BYTES + m % ROWS * 64)
        store_pair(group, load_f32x16(scores, 0), load_f32x16(scores, 16))
        store_pair(offset(group, PANEL_UNIT_BYTES), load_f32x16(scores, 32), load_f32x16(scores, 48))
    for tile in range(0, args.value_size // 16, 2):
        multiply_block(
            two_groups, args.value_size // 16 - tile, weights, WEIGHT_UNITS * PANEL_UNIT_BYTES,
            offset(panels, tile * PANEL_BYTES + VALUES_AT), WEIGHT_UNITS, offset(sums, tile * 64), pitch, True,
        )  # fmt: skip


@device
def store_results(args, sums, pitch, head, row, count):
    """Of rows [row, row + count) of a head."""
    for m in range(count):
        mine = offset(sums, m * pitch)
        inverse = splat_f32(float32(1) / sum_f32x16(load_f32x16(mine, args.value_size)))
        out = offset(args.out, ((row + m) * args.heads + head) * args.value_size * 4)
        for d in range(0, args.value_size, 16):
            store_f32x16(out, d, load_f32x16(mine, d) * inverse)


@device
def sums_pitch(args):
    """Bytes from one row's sums to the next one's."""
    return args.value_size * 4 + TILED_TAIL


@device
def queries_bytes(args):
    """Of a state's rows, before their sums."""
    return (args.head_size + 31) // 32 * PANEL_UNIT_BYTES * (TILED_ROWS // ROWS)


def prompt_attender(cache):
    """attend_prompt(args, scratch, panels, table, row, rows, position, unit, thread, threads): this thread's part of a span of a
    prompt; the number of the next piece of work, `unit` being that of the first.
    """

    @device
    def attend_rows(args, scratch, panels, table, kv_head, first_head, heads, row, count, position):
        """Rows [row, row + count) of one sequence, `heads` query heads that read the same KV head."""
        pitch, before = sums_pitch(args), queries_bytes(args)
        states, state_bytes = offset(scratch, TILED_STATES), before + TILED_ROWS * pitch
        for h in range(heads):
            state = offset(states, h * state_bytes)
            q = offset(args.q, row * args.q_stride + (first_head + h) * args.head_size * 4)
            highest, total = float32(LOWEST), float32(0)
            if args.sunk:
                highest, total = load_f32(args.sinks, first_head + h) * float32(LOG2_E), float32(1)
            load_queries(args, state, offset(state, before), pitch, q, args.q_stride, count, highest, total)
        last = (position + count - 1) // CACHE_BLOCK
        configure(TILED_ROWS)
        for block in range(first_seen(args, position) // CACHE_BLOCK, last + 1):
            tokens = min(position + count - block * CACHE_BLOCK, CACHE_BLOCK)
            cache.expand_keys(keys_of(args, table, block, kv_head), args.head_size, panels, PANEL_BYTES)
            values = values_of(args, table, block, kv_head)
            cache.expand_values(values, args.value_size, tokens, offset(panels, VALUES_AT), PANEL_BYTES)
            for h in range(heads):
                state = offset(states, h * state_bytes)
                attend_block(args, scratch, panels, state, offset(state, before), pitch, block, count, position)
        release()
        for h in range(heads):
            store_results(args, offset(states, h * state_bytes + before), pitch, first_head + h, row, count)

    @device
    def attend_prompt(args, scratch, panels, table, row, rows, position, unit, thread, threads):
        tiles = (rows + TILED_ROWS - 1) // TILED_ROWS
        # Heads by themselves where there would be little work for each thread: it makes more panels, and no other bits.
        pieces = (args.group + TILED_HEADS - 1) // TILED_HEADS
        most = TILED_HEADS if tiles * args.kv_heads * pieces >= 4 * threads else 1
        pieces = (args.group + most - 1) // most
        for tile in range(tiles):
            start = tile * TILED_ROWS
            for piece in range(args.kv_heads * pieces):
                if unit % threads == thread:
                    first, heads = heads_of(args, piece, pieces, most)
                    if heads > 0:
                        count = min(rows - start, TILED_ROWS)
                        attend_rows(
                            args, scratch, panels, table, piece // pieces, first, heads, row + start, count, position + start
                        )
                unit += 1
        return unit

    return attend_prompt
