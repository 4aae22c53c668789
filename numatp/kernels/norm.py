"""Normalisation of activation rows."""

from math import sqrt

from numatp.kernels.compile import device, kernel, rows_of, share
from numatp.kernels.exp import sigmoid, silu
from numatp.kernels.jit import float32
from numatp.kernels.simd import (
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    offset,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    sum_f32x16,
)


@device
def sum_of_squares(x, size):
    squares = splat_f32(0)
    for i in range(0, size, 16):
        squares = fma(load_f32x16(x, i), load_f32x16(x, i), squares)
    return sum_f32x16(squares)


@device
def inverse_rms(x, size, epsilon):
    """1 / sqrt(mean(x**2) + epsilon) of `size` floats in all lanes."""
    return splat_f32(float32(1) / sqrt(sum_of_squares(x, size) / float32(size) + epsilon))


@device
def mean_and_inverse_deviation(x, size, epsilon):
    """The mean of `size` floats and 1 / sqrt(variance + epsilon), in all lanes."""
    sums = splat_f32(0)
    for i in range(0, size, 16):
        sums = sums + load_f32x16(x, i)
    mean = splat_f32(sum_f32x16(sums) / float32(size))
    squares = splat_f32(0)
    for i in range(0, size, 16):
        apart = load_f32x16(x, i) - mean
        squares = fma(apart, apart, squares)
    return mean, splat_f32(float32(1) / sqrt(sum_f32x16(squares) / float32(size) + epsilon))


@kernel(
    x="pointer", rows="pointer", select="pointer", weight="pointer", width="int", epsilon="float", scale="float",
    out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def rms_norm(args, thread, threads):
    """out[i] = x[select[i]] / sqrt(mean(x**2) + epsilon) * weight * scale, for rows of `width` floats, a multiple of 16.

    select: int64 per output row. private: every thread makes all rows for itself; else the threads share the rows. One row is
    always summed by one thread in one order, so that all threads and ranks get the same bits.
    """
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.width * 4)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        scale = splat_f32(args.scale) * inverse_rms(x, args.width, args.epsilon)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(x, i) * scale * load_f32x16(args.weight, i))


@kernel(
    x="pointer", rows="pointer", select="pointer", weight="pointer", width="int", epsilon="float", scale="float",
    out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def layer_norm(args, thread, threads):
    """out[i] = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight * scale of x[select[i]]; otherwise as rms_norm."""
    first, last = rows_of(args, thread, threads)
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.width * 4)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        mean, inverse = mean_and_inverse_deviation(x, args.width, args.epsilon)
        scale = splat_f32(args.scale) * inverse
        for i in range(0, args.width, 16):
            store_f32x16(out, i, (load_f32x16(x, i) - mean) * scale * load_f32x16(args.weight, i))


@kernel(
    x="pointer", rows="pointer", heads="int", q_heads="int", k_heads="int", size="int", q_weight="pointer", k_weight="pointer",
    epsilon="float",
)  # fmt: skip
def rms_norm_heads(args, thread, threads):
    """rms_norm in place of each of the first q_heads and the next k_heads of x (rows, heads, size); weights (size,).

    Threads divide the heads of all rows as append.rotate_and_append does.
    """
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        head, x = item % args.heads, offset(args.x, item * args.size * 4)
        if head < args.q_heads + args.k_heads:
            scale = inverse_rms(x, args.size, args.epsilon)
            weight = args.q_weight if head < args.q_heads else args.k_weight
            for i in range(0, args.size, 16):
                store_f32x16(x, i, load_f32x16(x, i) * scale * load_f32x16(weight, i))


@kernel(x="pointer", rows="pointer", heads="int", k_heads="int", size="int", from_keys="int", epsilon="float")
def rms_norm_values(args, thread, threads):
    """Each of the last k_heads of x (rows, heads, size), the values, becomes its rms_norm without a weight; from_keys: that of the
    key head, which stands k_heads before it. Threads divide heads as in rms_norm_heads.
    """
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        out = offset(args.x, item * args.size * 4)
        if item % args.heads >= args.heads - args.k_heads:
            x = offset(out, -args.k_heads * args.size * 4) if args.from_keys else out
            scale = inverse_rms(x, args.size, args.epsilon)
            for i in range(0, args.size, 16):
                store_f32x16(out, i, load_f32x16(x, i) * scale)


@kernel(
    x="pointer", x_stride="int", gate="pointer", gate_stride="int", rows="pointer", heads="int", size="int", weight="pointer",
    epsilon="float", by_sigmoid="int", out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def gated_rms_norm(args, thread, threads):
    """out = rms_norm of each head of x (rows, heads, size) * silu(gate), by_sigmoid sigmoid(gate), gate of the same shape; private
    as in rms_norm.
    """
    first, last = rows_of(args, thread, threads)
    width = args.heads * args.size
    for row in range(first, last):
        out = offset(args.out, row * width * 4 + thread * args.out_thread_stride)
        for head in range(args.heads):
            x = offset(args.x, row * args.x_stride + head * args.size * 4)
            gate = offset(args.gate, row * args.gate_stride + head * args.size * 4)
            scale = inverse_rms(x, args.size, args.epsilon)
            for i in range(0, args.size, 16):
                value = load_f32x16(x, i) * scale * load_f32x16(args.weight, i)
                opening = load_f32x16(gate, i)
                opened = sigmoid(opening) if args.by_sigmoid else silu(opening)
                store_f32x16(out, head * args.size + i, value * opened)


@kernel(
    x="pointer", rows="pointer", weight="pointer", width="int", epsilon="float", out="pointer", add="int", scale="float",
    private="int",
)  # fmt: skip
def add_rms_norm(args, thread, threads):
    """out = ([out +] rms_norm of x) * scale, all (rows, width). private: rows are few, and threads share the columns; else they
    share the rows.

    A row is always summed as a whole, so that all threads and ranks get the same bits.
    """
    first, last = rows_of(args, thread, threads)
    start, stop = 0, args.width // 16
    if args.private:
        start, stop = share(args.width // 16, thread, threads)
    factor = splat_f32(args.scale)
    for row in range(first, last):
        x, out = offset(args.x, row * args.width * 4), offset(args.out, row * args.width * 4)
        scale = inverse_rms(x, args.width, args.epsilon)
        for i in range(start * 16, stop * 16, 16):
            before = load_f32x16(out, i) if args.add else splat_f32(float32(0))
            store_f32x16(out, i, (before + load_f32x16(x, i) * scale * load_f32x16(args.weight, i)) * factor)


@kernel(
    x="pointer", rows="pointer", heads="int", q_heads="int", k_heads="int", size="int", q_weight="pointer", k_weight="pointer",
    epsilon="float",
)  # fmt: skip
def layer_norm_heads(args, thread, threads):
    """layer_norm in place of each q and k head of x, as rms_norm_heads; weights (heads, size)."""
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        head, x = item % args.heads, offset(args.x, item * args.size * 4)
        if head < args.q_heads + args.k_heads:
            mean, scale = mean_and_inverse_deviation(x, args.size, args.epsilon)
            q = offset(args.q_weight, head * args.size * 4)
            k = offset(args.k_weight, (head - args.q_heads) * args.size * 4)
            weight = q if head < args.q_heads else k
            for i in range(0, args.size, 16):
                store_f32x16(x, i, (load_f32x16(x, i) - mean) * scale * load_f32x16(weight, i))


@kernel(
    x="pointer", x_stride="int", rows="pointer", q_heads="int", k_heads="int", size="int", first_key="int", counted_keys="int",
    width="int", out="pointer", count="pointer",
)  # fmt: skip
def sums_of_squares(args, thread, threads):
    """out (2 * rows,) in rows of `width` floats, as many as count [1] says: of each row of x (q_heads + 2 * k_heads, size) the sum
    over its queries, and the one over `counted_keys` of its keys. The rest of the last row is set to 0.
    """
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    for row in range(first, last):
        q = offset(args.x, row * args.x_stride)
        k = offset(q, (args.q_heads + args.first_key) * args.size * 4)
        store_f32(args.out, 2 * row, sum_of_squares(q, args.q_heads * args.size))
        store_f32(args.out, 2 * row + 1, sum_of_squares(k, args.counted_keys * args.size))
    if thread == threads - 1:
        used = (2 * rows + args.width - 1) // args.width
        store_i64(args.count, 0, used)
        for i in range(2 * rows, used * args.width):
            store_f32(args.out, i, float32(0))


@kernel(
    x="pointer", rows="pointer", heads="int", q_heads="int", k_heads="int", size="int", sums="pointer", q_values="int",
    k_values="int", q_weight="pointer", k_weight="pointer", epsilon="float",
)  # fmt: skip
def rms_norm_all_heads(args, thread, threads):
    """As rms_norm_heads, but queries are divided by the root of the mean square of all q_values queries of the model, and keys of
    all its k_values keys; sums (rows, 2): of the squares; weights (q_heads, size) and (k_heads, size).
    """
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        x = offset(args.x, item * args.size * 4)
        if head < args.q_heads + args.k_heads:
            mean = load_f32(args.sums, 2 * row) / float32(args.q_values)
            weight = offset(args.q_weight, head * args.size * 4)
            if head >= args.q_heads:
                mean = load_f32(args.sums, 2 * row + 1) / float32(args.k_values)
                weight = offset(args.k_weight, (head - args.q_heads) * args.size * 4)
            scale = splat_f32(float32(1) / sqrt(mean + args.epsilon))
            for i in range(0, args.size, 16):
                store_f32x16(x, i, load_f32x16(x, i) * scale * load_f32x16(weight, i))
