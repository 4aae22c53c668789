"""Soft caps, as Gemma 2 has them: x becomes cap * tanh(x / cap), nearly x where it is small and never beyond the cap."""

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import exp
from numatp.kernels.jit import float32
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16


@device
def soft_cap(x, cap):
    """cap * tanh(x / cap) = cap - 2 cap / (1 + exp(2 x / cap)) of a vector; what is infinite or no number becomes no number."""
    twice = splat_f32(cap + cap)
    bounded = splat_f32(cap) - twice / (splat_f32(1) + exp(x * splat_f32(float32(2) / cap)))
    return bounded + (x - x)


@device
def cap_rows(x, stride, rows, width, cap):
    """x (rows, width), rows `stride` bytes apart, in its place; whole vectors of 16."""
    for row in range(rows):
        for i in range(0, width, 16):
            place = offset(x, row * stride)
            store_f32x16(place, i, soft_cap(load_f32x16(place, i), cap))


@kernel(x="pointer", x_stride="int", rows="pointer", width="int", cap="float")
def cap_columns(args, thread, threads):
    """x (rows, width) capped, up to whole vectors of 16. Threads share the columns as they do in a matrix product."""
    first, last = share((args.width + 15) // 16, thread, threads)
    cap_rows(offset(args.x, first * 64), args.x_stride, load_i64(args.rows, 0), (last - first) * 16, args.cap)
