"""Products of two activations, one of which opens and closes the other."""

from numatp.kernels.compile import kernel, rows_of, share
from numatp.kernels.exp import gelu, sigmoid, silu
from numatp.kernels.simd import (
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32x16,
    min_f32x16,
    offset,
    splat_f32,
    store_f32x16,
    sum_f32x16,
)


@kernel(
    gate="pointer", gate_stride="int", up="pointer", up_stride="int", rows="pointer", width="int", out="pointer",
    out_thread_stride="int", private="int",
)  # fmt: skip
def silu_gate(args, thread, threads):
    """out (rows, width) = silu(gate) * up; strides are bytes from row to row, width is a multiple of 16.

    private: every thread makes all rows for itself; else the threads share the rows.
    """
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        gate, up = offset(args.gate, row * args.gate_stride), offset(args.up, row * args.up_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, silu(load_f32x16(gate, i)) * load_f32x16(up, i))


@kernel(
    x="pointer", x_stride="int", gate="pointer", gate_stride="int", rows="pointer", width="int", out="pointer",
    out_thread_stride="int", private="int",
)  # fmt: skip
def sigmoid_gate(args, thread, threads):
    """out (rows, width) = x * sigmoid(gate); otherwise as silu_gate."""
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        x, gate = offset(args.x, row * args.x_stride), offset(args.gate, row * args.gate_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(x, i) * sigmoid(load_f32x16(gate, i)))


@kernel(x="pointer", rows="pointer", heads="int", size="int", gate="pointer", gate_stride="int")
def head_gate(args, thread, threads):
    """x (rows, heads, size) *= sigmoid(gate (rows, heads)), one number per head; size is a multiple of 16."""
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        x = offset(args.x, item * args.size * 4)
        factor = sigmoid(splat_f32(load_f32(offset(args.gate, row * args.gate_stride), head)))
        for i in range(0, args.size, 16):
            store_f32x16(x, i, load_f32x16(x, i) * factor)


@kernel(
    gate="pointer", gate_stride="int", up="pointer", up_stride="int", rows="pointer", width="int", out="pointer",
    out_thread_stride="int", private="int",
)  # fmt: skip
def gelu_gate(args, thread, threads):
    """out (rows, width) = gelu(gate) * up; otherwise as silu_gate."""
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        gate, up = offset(args.gate, row * args.gate_stride), offset(args.up, row * args.up_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, gelu(load_f32x16(gate, i)) * load_f32x16(up, i))


@kernel(
    gate="pointer", gate_stride="int", up="pointer", up_stride="int", rows="pointer", width="int", alpha="float", limit="float",
    shift="float", out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def clamped_gate(args, thread, threads):
    """out (rows, width) = g * sigmoid(alpha * g) * (up + shift), where g is the gate up to `limit` and up is within it on both
    sides; otherwise as silu_gate.
    """
    first, last = rows_of(args, thread, threads)
    limit, alpha, shift = splat_f32(args.limit), splat_f32(args.alpha), splat_f32(args.shift)
    for row in range(first, last):
        gate, up = offset(args.gate, row * args.gate_stride), offset(args.up, row * args.up_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        for i in range(0, args.width, 16):
            g = min_f32x16(load_f32x16(gate, i), limit)
            u = max_f32x16(min_f32x16(load_f32x16(up, i), limit), splat_f32(0) - limit)
            store_f32x16(out, i, g * sigmoid(alpha * g) * (u + shift))


@kernel(
    x="pointer", x_thread_stride="int", width="int", h="pointer", h_thread_stride="int", h_width="int", weight="pointer",
    rows="pointer", private="int",
)  # fmt: skip
def dot_gate(args, thread, threads):
    """x (rows, width) *= sigmoid(h (rows, h_width) . weight), one number per row; both widths are multiples of 16.

    private: every thread has its own x; else the threads share the rows.
    """
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.width * 4 + thread * args.x_thread_stride)
        h = offset(args.h, row * args.h_width * 4 + thread * args.h_thread_stride)
        products = splat_f32(0)
        for i in range(0, args.h_width, 16):
            products = fma(load_f32x16(h, i), load_f32x16(args.weight, i), products)
        factor = sigmoid(splat_f32(sum_f32x16(products)))
        for i in range(0, args.width, 16):
            store_f32x16(x, i, load_f32x16(x, i) * factor)
