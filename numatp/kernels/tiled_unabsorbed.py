"""Keys and values made of latent rows on tile registers, and attention of prompts to them (kernels/unabsorbed.py)."""

from numatp.kernels.compile import device
from numatp.kernels.heads import keys_of
from numatp.kernels.isa.amx import configure, release
from numatp.kernels.jit import float32
from numatp.kernels.layout import CACHE_BLOCK, PANEL_UNIT_BYTES, SCORES_PITCH
from numatp.kernels.pairs import store_pair
from numatp.kernels.panels import PANEL_BYTES, multiply_block
from numatp.kernels.scratch import TILED_ROWS, TILED_STATES
from numatp.kernels.simd import load_f32x16, load_i8x64, offset, splat_f32, store_i8x64
from numatp.kernels.softmax import LOWEST
from numatp.kernels.tiled_attention import (
    VALUES_AT,
    WEIGHT_UNITS,
    attend_block,
    load_queries,
    queries_bytes,
    store_results,
    sums_pitch,
)
from numatp.kernels.transpose import transpose

# The panels of a block's latent rows are the fronts of these; those of its keys are the fronts of the first four, and those of its
# values the ends of up to 32.
LATENTS = CACHE_BLOCK // 16 * PANEL_BYTES


@device
def multiply_two(weights, group_bytes, panels, units, out):
    """out (32, CACHE_BLOCK) = two groups of 16 rows of a head's matrix times a block of latent rows."""
    for tile in range(0, CACHE_BLOCK // 16, 2):
        multiply_block(
            True, 2, weights, group_bytes, offset(panels, tile * PANEL_BYTES), units, offset(out, tile * 64), SCORES_PITCH, False
        )


@device
def make_keys(args, k_b, panels, room):
    """Panels of a block's keys, of panels of its latent rows."""
    latents, units = offset(panels, LATENTS), args.latent // 32
    made = (args.head_size - args.rotated) // 32
    for unit in range(made):
        multiply_two(offset(k_b, unit * 2 * units * PANEL_UNIT_BYTES), units * PANEL_UNIT_BYTES, latents, units, room)
        for tile in range(CACHE_BLOCK // 16):
            out = offset(panels, tile * PANEL_BYTES + unit * PANEL_UNIT_BYTES)
            for i in range(16):
                low, high = load_f32x16(room, i * CACHE_BLOCK + tile * 16), load_f32x16(room, (i + 16) * CACHE_BLOCK + tile * 16)
                store_pair(offset(out, i * 64), low, high)
    for tile in range(CACHE_BLOCK // 16):  # what rotates is behind the latent rows, and behind the keys' numbers
        source, out = offset(latents, tile * PANEL_BYTES + units * PANEL_UNIT_BYTES), offset(panels, tile * PANEL_BYTES)
        for i in range(0, (args.rotated + 31) // 32 * PANEL_UNIT_BYTES, 64):
            store_i8x64(out, made * PANEL_UNIT_BYTES + i, load_i8x64(source, i))


@device
def make_values(args, v_b, panels, tokens, room, transposed):
    """Panels of the values of a block's first `tokens`; the others may be anything, and become zeros."""
    latents, units = offset(panels, LATENTS), args.latent // 32
    second = offset(transposed, PANEL_UNIT_BYTES)
    for pair in range(args.value_size // 32):
        multiply_two(offset(v_b, pair * 2 * units * PANEL_UNIT_BYTES), units * PANEL_UNIT_BYTES, latents, units, room)
        for group in range(2):
            for unit in range(WEIGHT_UNITS):
                source = offset(room, group * 16 * SCORES_PITCH + unit * 128)
                transpose(source, SCORES_PITCH, transposed, 64)
                transpose(offset(source, 64), SCORES_PITCH, second, 64)
                out = offset(panels, (2 * pair + group) * PANEL_BYTES + VALUES_AT + unit * PANEL_UNIT_BYTES)
                for i in range(16):
                    low = load_f32x16(transposed, i * 16) if unit * 32 + i < tokens else splat_f32(0)
                    high = load_f32x16(second, i * 16) if unit * 32 + 16 + i < tokens else splat_f32(0)
                    store_pair(offset(out, i * 64), low, high)


def tile_attender(cache, load_query, part_rows, squares_at, queries_at):
    """attend_on_tiles(args, scratch, panels, k_b, v_b, table, head, row, count, position) of kernels/unabsorbed.py."""

    @device
    def attend_on_tiles(args, scratch, panels, k_b, v_b, table, head, row, count, position):
        """Rows [row, row + count) of one sequence, one head."""
        pitch, before, size = sums_pitch(args), queries_bytes(args), args.head_size
        states, state_bytes = offset(scratch, TILED_STATES), before + TILED_ROWS * pitch
        room = offset(states, part_rows // TILED_ROWS * state_bytes)
        transposed, queries = offset(room, squares_at), offset(room, queries_at)
        for first in range(0, count, TILED_ROWS):
            here, state = min(count - first, TILED_ROWS), offset(states, first // TILED_ROWS * state_bytes)
            for m in range(here):
                load_query(args, row + first + m, head, position + first + m, offset(queries, m * size * 4))
            load_queries(args, state, offset(state, before), pitch, queries, size * 4, here, float32(LOWEST), float32(0))
        configure(TILED_ROWS)
        for block in range((position + count - 1) // CACHE_BLOCK + 1):
            tokens = min(position + count - block * CACHE_BLOCK, CACHE_BLOCK)
            keys = keys_of(args, table, block, 0)
            cache.expand_keys(keys, args.latent + args.rotated, offset(panels, LATENTS), PANEL_BYTES)
            make_keys(args, k_b, panels, room)
            make_values(args, v_b, panels, tokens, room, transposed)
            for first in range(0, count, TILED_ROWS):
                here, state = min(count - first, TILED_ROWS), offset(states, first // TILED_ROWS * state_bytes)
                if block * CACHE_BLOCK < position + first + here:
                    attend_block(args, scratch, panels, state, offset(state, before), pitch, block, here, position + first)
        release()
        for first in range(0, count, TILED_ROWS):
            sums = offset(states, first // TILED_ROWS * state_bytes + before)
            store_results(args, sums, pitch, head, row + first, min(count - first, TILED_ROWS))

    return attend_on_tiles
