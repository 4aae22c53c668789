"""Activations times a number."""

from math import log1p

from numatp.kernels.compile import kernel, share
from numatp.kernels.jit import int64
from numatp.kernels.simd import fma, load_f32x16, load_i64, offset, splat_f32, store_f32x16


@kernel(x="pointer", x_stride="int", rows="pointer", width="int", factor="float")
def scale_columns(args, thread, threads):
    """x (rows, width) *= factor, up to whole vectors of 16. Threads share the columns as they do in a matrix product."""
    first, last = share((args.width + 15) // 16, thread, threads)
    factor = splat_f32(args.factor)
    for row in range(load_i64(args.rows, 0)):
        x = offset(args.x, row * args.x_stride)
        for i in range(first * 16, last * 16, 16):
            store_f32x16(x, i, load_f32x16(x, i) * factor)


@kernel(x="pointer", x_stride="int", rows="pointer", width="int", factor="float", out="pointer", out_stride="int")
def add_scaled(args, thread, threads):
    """out += factor * x, both (rows, width), width a multiple of 16. Threads share the columns as in scale_columns."""
    first, last = share((args.width + 15) // 16, thread, threads)
    factor = splat_f32(args.factor)
    for row in range(load_i64(args.rows, 0)):
        x, out = offset(args.x, row * args.x_stride), offset(args.out, row * args.out_stride)
        for i in range(first * 16, last * 16, 16):
            store_f32x16(out, i, fma(load_f32x16(x, i), factor, load_f32x16(out, i)))


@kernel(
    x="pointer", rows="pointer", heads="int", q_heads="int", size="int", positions="pointer", every="float", by="float",
    shift="float",
)  # fmt: skip
def temper_heads(args, thread, threads):
    """Each of the first q_heads of x (rows, heads, size), the queries, times 1 + by * log(1 + floor((position + shift) / every)):
    what is further along looks more closely, as in Llama 4. Threads divide the heads of all rows as append.rotate_and_append does.
    """
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head, x = item // args.heads, item % args.heads, offset(args.x, item * args.size * 4)
        if head < args.q_heads:
            steps = int64((load_i64(args.positions, row) + args.shift) / args.every)
            factor = splat_f32(1 + args.by * log1p(steps))
            for i in range(0, args.size, 16):
                store_f32x16(x, i, load_f32x16(x, i) * factor)
