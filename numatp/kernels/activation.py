"""The 8-bit form of an activation row, which the integer kernels multiply.

A row of K values, K a multiple of 32, is stored as K int8, then per block of 32 a float32 scale, a float32 sum of the block's
values as quantised (scale * sum of int8), and an int32 sum of its int8; the whole padded to 64 bytes.
"""

from numba import float32

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.simd import (
    abs_f32,
    largest,
    load_f32x16,
    load_i64,
    max_f32x16,
    offset,
    round_to_i32,
    splat_f32,
    store_f32,
    store_i32,
    store_i32_as_i8,
    sum_i32x16,
)

BLOCK = 32
SMALLEST_SCALE = 1e-30  # below it 1 / scale may overflow; such a block is zero to every reader


def row_bytes(width: int) -> int:
    """Bytes of one quantised row of `width` values."""
    return (width + width // BLOCK * 12 + 63) // 64 * 64


@device
def scales(x, blocks):
    """Pointer to the row's scales, float32 (blocks,)."""
    return offset(x, blocks * 32)


@device
def block_sums(x, blocks):
    """Pointer to the sums of the quantised values, float32 (blocks,)."""
    return offset(x, blocks * 36)


@device
def integer_sums(x, blocks):
    """Pointer to the sums of the int8 values, int32 (blocks,)."""
    return offset(x, blocks * 40)


@kernel(
    x="pointer", x_stride="int", x_thread_stride="int", out="pointer", out_stride="int", out_thread_stride="int", rows="pointer",
    blocks="int", private="int",
)  # fmt: skip
def quantize(args, thread, threads):
    """float32 rows at x (bytes from row to row: x_stride) to quantised rows at out.

    private: every thread makes all rows for itself, at its own place; else the threads share the rows.
    """
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride + thread * args.x_thread_stride)
        out = offset(args.out, row * args.out_stride + thread * args.out_thread_stride)
        for block in range(args.blocks):
            low, high = load_f32x16(x, block * 32), load_f32x16(x, block * 32 + 16)
            magnitude = largest(max_f32x16(abs_f32(low), abs_f32(high)))
            scale = magnitude / float32(127)
            inverse = splat_f32(float32(1) / scale if scale > SMALLEST_SCALE else float32(0))
            low8, high8 = round_to_i32(low * inverse), round_to_i32(high * inverse)
            store_i32_as_i8(out, block * 32, low8)
            store_i32_as_i8(out, block * 32 + 16, high8)
            total = sum_i32x16(low8 + high8)
            store_f32(scales(out, args.blocks), block, scale)
            store_f32(block_sums(out, args.blocks), block, scale * total)
            store_i32(integer_sums(out, args.blocks), block, total)
