"""Activation rows in the order in which the matrix kernels multiply them.

The rows of a Step are taken in groups of `pitch`: 1 for Steps of one row, GROUP (kernels/rows.py) for others, the last group
filled up with rows that mean nothing. Within a group, what a kernel reads at the same time lies side by side:

"f32": float32 (width, pitch).
"q8": int8 (blocks, pitch, 32), then float32 scales (blocks, pitch), float32 sums of the quantised values (blocks, pitch), int32
starts (blocks, pitch), and sums and starts for the halves of a block, (blocks, 2, pitch); padded to 64 bytes. A start is what the
integer dot product with weights that are stored + zero begins with: -zero * the sum of the int8.
"bf16": BF16 (blocks, pitch, 32), in place of either for rows that go through tile registers: those of prompts of at least MANY
tokens (kernels/isa), never of a token that was generated. They come first, and the others begin with a group of their own.
"""

from numatp.kernels.bf16 import store_rounded
from numatp.kernels.compile import device, kernel, rows_of
from numatp.kernels.jit import float32, int64
from numatp.kernels.rows import GROUP, MANY, num_many
from numatp.kernels.simd import (
    abs_f32,
    largest_of_two,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32x16,
    offset,
    round_to_i32,
    splat_f32,
    store_f32,
    store_i32,
    store_i32_as_i8,
    sums_of_four,
)

BLOCK = 32
SMALLEST_SCALE = 1e-30  # below it 1 / scale may overflow; such a block is zero to every reader


def group_bytes(form: str, width: int, pitch: int) -> int:
    """Bytes of one group of `pitch` rows of `width` values, in form "f32" or "q8"; there is room for "bf16" if that may come."""
    in_form = 4 * width if form == "f32" else width + width // BLOCK * 28
    return (pitch * max(in_form, 2 * width if MANY and pitch == GROUP else 0) + 63) // 64 * 64


# Of a q8 group at x with `values` = blocks * pitch; the tables of halves have twice as many entries.


@device
def scales(x, values):
    return offset(x, values * 32)


@device
def block_sums(x, values):
    return offset(x, values * 36)


@device
def starts(x, values):
    return offset(x, values * 40)


@device
def half_sums(x, values):
    return offset(x, values * 44)


@device
def half_starts(x, values):
    return offset(x, values * 52)


@device
def scale_of(magnitude):
    """(the scale with which values up to the magnitude become int8, its inverse in all lanes)."""
    scale = magnitude / float32(127)
    return scale, splat_f32(float32(1) / scale if scale > SMALLEST_SCALE else float32(0))


@device
def store_block(out, place, low, high):
    store_i32_as_i8(out, place * 32, low)
    store_i32_as_i8(out, place * 32 + 16, high)


@device
def store_tables(out, values, block, pitch, row, zero, scale, sum_low, sum_high):
    """What the tables hold of one block of a group's row."""
    place, half = block * pitch + row, 2 * block * pitch + row
    store_f32(scales(out, values), place, scale)
    store_f32(block_sums(out, values), place, scale * (sum_low + sum_high))
    store_i32(starts(out, values), place, -zero * (sum_low + sum_high))
    store_f32(half_sums(out, values), half, scale * sum_low)
    store_f32(half_sums(out, values), half + pitch, scale * sum_high)
    store_i32(half_starts(out, values), half, -zero * sum_low)
    store_i32(half_starts(out, values), half + pitch, -zero * sum_high)


@device
def quantize_row(x, blocks, out, pitch, row, zero):
    """Float32 x (blocks * 32,) to a row of the group at out."""
    values = blocks * pitch
    # Two blocks at once, because a sum across lanes costs little more for two; of an odd number the last but one twice.
    for pair in range((blocks + 1) // 2):
        first = max(min(2 * pair, blocks - 2), 0)
        second = min(first + 1, blocks - 1)
        a, b = load_f32x16(x, first * 32), load_f32x16(x, first * 32 + 16)
        c, d = load_f32x16(x, second * 32), load_f32x16(x, second * 32 + 16)
        most = largest_of_two(max_f32x16(abs_f32(a), abs_f32(b)), max_f32x16(abs_f32(c), abs_f32(d)))
        scale, inverse = scale_of(most[0])
        second_scale, second_inverse = scale_of(most[1])
        a8, b8 = round_to_i32(a * inverse), round_to_i32(b * inverse)
        c8, d8 = round_to_i32(c * second_inverse), round_to_i32(d * second_inverse)
        sums = sums_of_four(a8, b8, c8, d8)
        store_block(out, first * pitch + row, a8, b8)
        store_block(out, second * pitch + row, c8, d8)
        store_tables(out, values, first, pitch, row, zero, scale, sums[0], sums[1])
        store_tables(out, values, second, pitch, row, zero, second_scale, sums[2], sums[3])


@device
def place_of(args, row):
    """(whether the row becomes BF16, its group, its place there)."""
    if args.routed:  # rows that lie in groups already
        return args.tiled != 0 and load_i64(args.many, row) != 0, row // args.pitch, row % args.pitch
    many = num_many(args.rows) if args.tiled else int64(0)
    if row < many:
        return True, row // args.pitch, row % args.pitch
    return False, (many + args.pitch - 1) // args.pitch + (row - many) // args.pitch, (row - many) % args.pitch


@device
def round_row(x, blocks, out, pitch, row):
    """Float32 x (blocks * 32,) to a row of the "bf16" group at out."""
    for block in range(blocks):
        place = (block * pitch + row) * BLOCK
        store_rounded(out, place, load_f32x16(x, block * BLOCK))
        store_rounded(out, place + 16, load_f32x16(x, block * BLOCK + 16))


@kernel(
    x="pointer", x_stride="int", x_thread_stride="int", select="pointer", rows="pointer", tiled="int", routed="int",
    many="pointer", blocks="int", zero="int", out="pointer", out_group="int", out_thread_stride="int",
    pitch="int", private="int",
)  # fmt: skip
def quantize(args, thread, threads):
    """Row i of "q8" groups at out, out_group bytes apart = row select[i] of x, float32 rows x_stride bytes apart; of "bf16" groups
    if the format is tiled, which means that it has panels, and the row is one of the first rows[1], or if rows are routed, many[i].

    private: every thread makes all rows for itself, at its own place; else the threads share the rows.
    """
    first, last = rows_of(args, thread, threads)
    pitch = args.pitch
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.x_stride + thread * args.x_thread_stride)
        becomes_bf16, group, place = place_of(args, row)
        out = offset(args.out, group * args.out_group + thread * args.out_thread_stride)
        if becomes_bf16:
            round_row(x, args.blocks, out, pitch, place)
        else:
            quantize_row(x, args.blocks, out, pitch, place, args.zero)


@kernel(
    x="pointer", x_stride="int", x_thread_stride="int", select="pointer", rows="pointer", tiled="int", routed="int",
    many="pointer", width="int", out="pointer", out_group="int", out_thread_stride="int", pitch="int", private="int",
)  # fmt: skip
def interleave(args, thread, threads):
    """Row i of "f32" groups at out = row select[i] of x; otherwise as quantize."""
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.x_stride + thread * args.x_thread_stride)
        becomes_bf16, group, place = place_of(args, row)
        out = offset(args.out, group * args.out_group + thread * args.out_thread_stride)
        if becomes_bf16:
            round_row(x, args.width // BLOCK, out, args.pitch, place)
        else:
            for i in range(args.width):
                store_f32(out, i * args.pitch + place, load_f32(x, i))
