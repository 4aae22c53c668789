"""Attention of prompts over latent rows with keys and values made of these, as a model's paper has it: a latent row costs a head
what an absorbed query does, and each token that a row sees then costs (DeepSeek-V3) 320 multiplications instead of 1,088.

A thread takes a head and up to PART_ROWS rows of a prompt, which all go through a block of tokens before the next block: its keys
and values are made once for all of them, in the thread's own memory. These are float32, or where rows go through tile registers
panels of BF16 (kernels/tiled_unabsorbed.py). A row's result does not depend on the rows beside it, nor on how a prompt is cut. The
heads' matrices are as kernels/head_rows.py makes them; specialize() sets the cache's type.
"""

from types import ModuleType
from typing import TYPE_CHECKING

from numatp.kernels.absorbed import heat_of, made_rows
from numatp.kernels.caches import f16
from numatp.kernels.compile import device, kernel, specialize
from numatp.kernels.heads import keys_of
from numatp.kernels.jit import int64
from numatp.kernels.layout import CACHE_BLOCK, MAX_HEAD_SIZE, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.rows import (
    GROUP,
    MANY,
    add_outer,
    add_outer_apart,
    load_rows,
    num_many,
    scale_rows,
    store_rows,
    with_rows,
    zero_group,
)
from numatp.kernels.scratch import TILED_ROWS, TILED_STATES, TILED_TAIL, WORK_BYTES, corrections_of, sums_of
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16
from numatp.kernels.transpose import transpose

if TYPE_CHECKING:  # kernels/sources.py reads this import: an edit there has these kernels compiled anew
    from numatp.kernels import attention
else:
    attention = specialize("attention", "cache", f16.__name__)

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it
PART_ROWS, LEAST_PART = 512, 64  # rows of a prompt that a thread takes at most, and at least where there are threads for all
STATE_BYTES = GROUP * QUERY_PITCH
SQUARE_BYTES = 16 * 16 * 4

# In scratch memory behind the states of all rows: up to 32 rows of a head's matrix times a block of latent rows; two squares that
# are transposed; a group's queries. Then for float32 the block's latent rows, its keys and its values.
SQUARES = 32 * SCORES_PITCH
QUERIES = SQUARES + 2 * SQUARE_BYTES
BLOCK = QUERIES + TILED_ROWS * MAX_HEAD_SIZE * 4


def scratch_bytes(head_size: int, value_size: int, latent_row: int) -> int:
    """Of a thread. latent_row: latent numbers and those that rotate."""
    tiled_state = TILED_ROWS * ((head_size + 31) // 32 * 64 + value_size * 4 + TILED_TAIL)
    tiled = TILED_STATES + PART_ROWS // TILED_ROWS * tiled_state
    floats = WORK_BYTES + PART_ROWS // GROUP * STATE_BYTES
    block = CACHE_BLOCK * (latent_row + head_size + value_size) * 4
    return max(floats + block, tiled if MANY else 0) + BLOCK


@device
def load_query(args, row, head, position, out):
    """A head's query, its last part rotated, times its heat."""
    q, size = offset(args.q, row * args.q_stride + head * args.head_size * 4), args.head_size
    factor = splat_f32(heat_of(args.heat, args.heat_length, position))
    for i in range(0, size, 16):
        store_f32x16(out, i, load_f32x16(q, i) * factor)
    rotate_pairs(offset(out, (size - args.rotated) * 4), offset(args.angles, row * args.rotated * 4), args.rotated // 2, 2, 1)


@device
def multiply_group(weights, latents, latent, out):
    """out (16, CACHE_BLOCK) = a group of 16 rows of a head's matrix times a block of latent rows, (latent, CACHE_BLOCK)."""
    for part in range(0, CACHE_BLOCK, 16):
        for first in range(0, 16, GROUP):
            total = zero_group()
            for i in range(latent):
                total = add_outer(total, load_f32x16(latents, i * CACHE_BLOCK + part), offset(weights, (i * 16 + first) * 4))
            store_rows(offset(out, first * SCORES_PITCH), SCORES_PITCH, part, total)


@device
def make_block(args, k_b, v_b, latents, keys, values, room):
    """keys (head_size, CACHE_BLOCK) and values (CACHE_BLOCK, value_size), float32, of latent rows (latent_row, CACHE_BLOCK)."""
    latent, made = args.latent, args.head_size - args.rotated
    for group in range(made // 16):
        multiply_group(offset(k_b, group * latent * 64), latents, latent, offset(keys, group * 16 * CACHE_BLOCK * 4))
    for i in range(0, args.rotated * CACHE_BLOCK, 16):
        store_f32x16(keys, made * CACHE_BLOCK + i, load_f32x16(latents, latent * CACHE_BLOCK + i))
    for group in range(args.value_size // 16):
        multiply_group(offset(v_b, group * latent * 64), latents, latent, room)
        for token in range(0, CACHE_BLOCK, 16):
            out = offset(values, (token * args.value_size + group * 16) * 4)
            transpose(offset(room, token * 4), SCORES_PITCH, out, args.value_size * 4)


@device
def score_made(zero, scores, state, keys, size):
    """As a cache's `score`."""
    for part in range(0, CACHE_BLOCK, 16):
        s = zero
        for d in range(size):
            s = add_outer_apart(s, load_f32x16(keys, d * CACHE_BLOCK + part), offset(state, d * 4), QUERY_PITCH)
        store_rows(scores, SCORES_PITCH, part, s)


@device
def add_made(zero, scratch, state, values, size, tokens):
    """As a cache's `add_values`."""
    for d in range(0, size, 16):
        a = scale_rows(load_rows(sums_of(state), QUERY_PITCH, d, zero), corrections_of(scratch))
        for t in range(tokens):
            a = add_outer_apart(a, load_f32x16(values, t * size + d), offset(scratch, t * 4), SCORES_PITCH)
        store_rows(sums_of(state), QUERY_PITCH, d, a)


@device
def attend_made(args, scratch, state, keys, values, block, count, position):
    """Online softmax of the `count` queries of a state over a block; query m is at position + m."""
    with_rows(count, score_made, scratch, state, keys, args.head_size)
    for m in range(count):
        attention.softmax(scratch, state, m, 0, position + m + 1 - block * CACHE_BLOCK)
    tokens = min(position + count - block * CACHE_BLOCK, CACHE_BLOCK)
    with_rows(count, add_made, scratch, state, values, args.value_size, tokens)


@device
def attend_in_floats(args, scratch, k_b, v_b, table, head, row, count, position):
    """Rows [row, row + count) of one sequence, one head."""
    states = offset(scratch, WORK_BYTES)
    room = offset(states, PART_ROWS // GROUP * STATE_BYTES)
    queries, latents = offset(room, QUERIES), offset(room, BLOCK)
    keys = offset(latents, (args.latent + args.rotated) * CACHE_BLOCK * 4)
    values = offset(keys, args.head_size * CACHE_BLOCK * 4)
    for first in range(0, count, GROUP):
        here, state = min(count - first, GROUP), offset(states, first // GROUP * STATE_BYTES)
        for m in range(here):
            load_query(args, row + first + m, head, position + first + m, offset(queries, m * args.head_size * 4))
        attention.load_queries(state, queries, args.head_size * 4, here, args.head_size, args.value_size, args.scale)
    for block in range((position + count - 1) // CACHE_BLOCK + 1):
        cache.unpack_keys(keys_of(args, table, block, 0), args.latent + args.rotated, latents)
        make_block(args, k_b, v_b, latents, keys, values, room)
        for first in range(0, count, GROUP):
            here, state = min(count - first, GROUP), offset(states, first // GROUP * STATE_BYTES)
            if block * CACHE_BLOCK < position + first + here:
                attend_made(args, scratch, state, keys, values, block, here, position + first)
    for first in range(0, count, GROUP):
        state = offset(states, first // GROUP * STATE_BYTES)
        for m in range(min(count - first, GROUP)):
            out = offset(args.out, ((row + first + m) * args.heads + head) * args.value_size * 4)
            attention.store_result(state, m, args.value_size, out)


if MANY:
    from numatp.kernels.tiled_unabsorbed import tile_attender

    attend_on_tiles = tile_attender(cache, load_query, PART_ROWS, SQUARES, QUERIES)
else:

    @device
    def attend_on_tiles(args, scratch, panels, k_b, v_b, table, head, row, count, position):
        """Never called: no row goes through tile registers."""


@kernel(
    q="pointer", q_stride="int", heads="int", head_size="int", rotated="int", value_size="int", latent="int", scale="float",
    heat="float", heat_length="int", angles="pointer", limit="int", window="int", chunked="int", cap="float", spans="pointer",
    num_spans="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer", block_stride="int",
    head_bytes="int", value_bytes="int", k_b="pointer", v_b="pointer", scratch="pointer", scratch_stride="int", rows="pointer",
    tiled="int", panels="pointer", panels_thread_stride="int", out="pointer",
)  # fmt: skip
def unabsorbed_attention(args, thread, threads):
    """out (rows, heads, value_size) = softmax(scale * q k) v of the rows that made_rows counts; of the others nothing is written.

    q (rows, heads, head_size), of which the last `rotated` are still to be rotated by angles (rows, rotated / 2, 2), and all to be
    multiplied by their heat (kernels/absorbed.py). k_b, v_b: of each head head_size - rotated and value_size rows
    (kernels/head_rows.py). tiled: rows go through tile registers, and these matrices are BF16. Others as in kernels/attention.py.
    """
    long = num_many(args.rows) if args.tiled else int64(0)
    panels, scratch = offset(args.panels, thread * args.panels_thread_stride), offset(args.scratch, thread * args.scratch_stride)
    number_bytes, unit = 2 if args.tiled else 4, int64(0)
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, row, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 3)
        rows = made_rows(args.rows, row, load_i64(span, 2), position, args.limit)
        table = offset(args.tables, sequence * args.table_length * 8)
        parts = max((rows + PART_ROWS - 1) // PART_ROWS, min(threads // max(args.heads, 1), rows // LEAST_PART))
        each = ((rows + max(parts, 1) - 1) // max(parts, 1) + TILED_ROWS - 1) // TILED_ROWS * TILED_ROWS
        for head in range(args.heads):
            k_b = offset(args.k_b, head * (args.head_size - args.rotated) * args.latent * number_bytes)
            v_b = offset(args.v_b, head * args.value_size * args.latent * number_bytes)
            for part in range(parts):
                start = part * each
                count = min(rows - start, each)
                if unit % threads == thread and count > 0:
                    if row < long:
                        attend_on_tiles(args, scratch, panels, k_b, v_b, table, head, row + start, count, position + start)
                    else:
                        attend_in_floats(args, scratch, k_b, v_b, table, head, row + start, count, position + start)
                unit += 1
