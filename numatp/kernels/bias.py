"""Biases of matrix products."""

from numatp.kernels.compile import kernel, rows_of, share
from numatp.kernels.simd import load_f32x16, load_i64, offset, store_f32x16


@kernel(x="pointer", x_stride="int", rows="pointer", width="int", bias="pointer")
def add_bias(args, thread, threads):
    """x (rows, width) += bias (width,), up to whole vectors of 16. Threads share the columns as they do in a matrix product."""
    first, last = share((args.width + 15) // 16, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        x = offset(args.x, row * args.x_stride)
        for i in range(first * 16, last * 16, 16):
            store_f32x16(x, i, load_f32x16(x, i) + load_f32x16(args.bias, i))


@kernel(x="pointer", x_stride="int", rows="pointer", width="int", select="pointer", bias="pointer", private="int")
def add_selected_bias(args, thread, threads):
    """x (rows, width) += bias[select[row]], width a multiple of 16; select int64 per row.

    Threads share the rows. private: all rows are few, and threads share the columns instead.
    """
    first, last = rows_of(args, thread, threads)
    start, stop = 0, args.width // 16
    if args.private:
        start, stop = share(args.width // 16, thread, threads)
    for row in range(first, last):
        x, bias = offset(args.x, row * args.x_stride), offset(args.bias, load_i64(args.select, row) * args.width * 4)
        for i in range(start * 16, stop * 16, 16):
            store_f32x16(x, i, load_f32x16(x, i) + load_f32x16(bias, i))
