"""Products of two activations, one of which opens and closes the other."""

from numatp.kernels.compile import kernel, share
from numatp.kernels.exp import sigmoid, silu
from numatp.kernels.simd import load_f32x16, load_i64, offset, store_f32x16


@kernel(
    gate="pointer", up="pointer", stride="int", rows="pointer", width="int", out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def silu_gate(args, thread, threads):
    """out (rows, width) = silu(gate) * up; gate and up have `stride` bytes from row to row, width is a multiple of 16.

    private: every thread makes all rows for itself; else the threads share the rows.
    """
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    for row in range(first, last):
        gate, up = offset(args.gate, row * args.stride), offset(args.up, row * args.stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, silu(load_f32x16(gate, i)) * load_f32x16(up, i))


@kernel(
    x="pointer", x_stride="int", gate="pointer", gate_stride="int", rows="pointer", width="int", out="pointer",
    out_thread_stride="int", private="int",
)  # fmt: skip
def sigmoid_gate(args, thread, threads):
    """out (rows, width) = x * sigmoid(gate); otherwise as silu_gate."""
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    for row in range(first, last):
        x, gate = offset(args.x, row * args.x_stride), offset(args.gate, row * args.gate_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(x, i) * sigmoid(load_f32x16(gate, i)))
