"""Which scale, and which minimum, lose least of some weights: the search behind every format's `quantize`.

Weights come as two vectors, the 32 of a block; 16 are given twice, which changes no mean. For each of some scales around the one
that just spans the weights, the codes q are rounded, and the scale that fits these codes best follows by least squares; the least
squared error wins. Where there is no minimum, errors of large weights count more: a model misses those most (bench/LOG.md,
2026-11-26).
"""

from numatp.kernels.compile import device
from numatp.kernels.jit import float32
from numatp.kernels.simd import (
    abs_f32,
    floor_f32,
    lane,
    largest,
    load_f16,
    load_f32x16,
    max_f32x16,
    min_f32x16,
    negative,
    round_f32,
    round_to_i32,
    splat_f32,
    store_f16,
    store_i32_as_i8,
    sum_f32x16,
    with_lane,
)

MOST_F16 = 65504  # the largest float16
SMALLEST = 1e-30  # weights below it are zeros


@device
def rounded(v, low, high):
    """v rounded to whole numbers in low..high."""
    return min_f32x16(max_f32x16(round_f32(v), splat_f32(low)), splat_f32(high))


@device
def reciprocal(d):
    return float32(1) / d if abs(d) > float32(SMALLEST) else float32(0)


@device
def keep_f16(out, index, d):
    """Stores d as the index-th float16 at out, and returns what it is now."""
    store_f16(out, index, min(max(d, float32(-MOST_F16)), float32(MOST_F16)))
    return load_f16(out, index)


@device
def store_bytes(out, v):
    """16 whole numbers in 0..255 as bytes."""
    store_i32_as_i8(out, 0, round_to_i32(v))


@device
def store_nibbles(out, low, high):
    """16 bytes of whole numbers in 0..15: those of the vector `low` in the low nibbles."""
    store_bytes(out, low + splat_f32(16) * high)


@device
def fit_scale(code, a, b, first, step, count):
    """d for weights d * value, where code(x / d) gives (code, value) of the closest value.

    The largest weight is tried at first + i * step for i < count, as it is and with its sign turned. Squared errors count by the
    weight's magnitude.
    """
    magnitude = largest(max_f32x16(abs_f32(a), abs_f32(b)))
    d, best = float32(0), float32(0)
    if magnitude > float32(SMALLEST):
        u, v = abs_f32(a) * splat_f32(float32(1) / magnitude), abs_f32(b) * splat_f32(float32(1) / magnitude)
        for i in range(2 * count):
            place = float32(first) + float32(step) * (i // 2)
            inverse = splat_f32((place if i % 2 else -place) / magnitude)
            (_, p), (_, q) = code(a * inverse), code(b * inverse)
            xq, qq = sum_f32x16(u * a * p + v * b * q), sum_f32x16(u * p * p + v * q * q)
            if xq * xq > best * qq:  # what it takes away from the squared error
                d, best = xq / qq, xq * xq / qq
    return d


@device
def scale_error(code, a, b, d):
    """Squared errors of d * value, counted by the weight's magnitude."""
    inverse, scale = splat_f32(reciprocal(d)), splat_f32(d)
    (_, p), (_, q) = code(a * inverse), code(b * inverse)
    p, q = a - scale * p, b - scale * q
    return sum_f32x16(abs_f32(a) * p * p + abs_f32(b) * q * q)


@device
def fit_whole_scale(code, a, b, unit, d, low, high):
    """The best whole number in low..high near d / unit for weights unit * number * value."""
    near = float32(round(d * reciprocal(unit)))
    best, error = float32(0), float32(0)
    for i in range(3):
        number = min(max(near + float32(i - 1), float32(low)), float32(high))
        new = scale_error(code, a, b, unit * number)
        if i == 0 or new < error:
            best, error = number, new
    return best


@device
def line_codes(v, d, m, top):
    """q in 0..top for weights d * q + m."""
    return rounded((v - splat_f32(m)) * splat_f32(reciprocal(d)), 0, top)


@device
def line_error(a, b, d, m, top):
    """Squared error of d * q + m."""
    scale, minimum = splat_f32(d), splat_f32(m)
    p, q = a - scale * line_codes(a, d, m, top) - minimum, b - scale * line_codes(b, d, m, top) - minimum
    return sum_f32x16(p * p + q * q)


@device
def fit_line(a, b, top, first, step, count, sink):
    """(d, m) for weights d * q + m with q in 0..top; sink: m is at most zero.

    The range of the weights is tried as first + i * step codes for i < count, and each fitted twice.
    """
    low, high = -largest(max_f32x16(negative(a), negative(b))), largest(max_f32x16(a, b))
    if sink:
        low = min(low, float32(0))
    d, m, best = float32(0), low, float32(-1)
    if high - low > float32(SMALLEST):
        x = sum_f32x16(a + b)
        for i in range(count):
            scale, minimum = (high - low) / (float32(first) + float32(step) * i), low
            for _ in range(2):
                p, q = line_codes(a, scale, minimum, top), line_codes(b, scale, minimum, top)
                n, nn, xn = sum_f32x16(p + q), sum_f32x16(p * p + q * q), sum_f32x16(a * p + b * q)
                spread = float32(32) * nn - n * n
                if spread > 0:
                    scale, minimum = (float32(32) * xn - n * x) / spread, (nn * x - n * xn) / spread
                    if sink and minimum > 0:
                        scale, minimum = xn / nn, float32(0)
                error = line_error(a, b, scale, minimum, top)
                if best < 0 or error < best:
                    d, m, best = scale, minimum, error
    return d, m


@device
def fit_whole_line(a, b, unit, sink_unit, d, m, top, most):
    """The best whole numbers (s, t) in 0..most near d / unit and -m / sink_unit for weights unit * s * q - sink_unit * t."""
    s, t = float32(round(d * reciprocal(unit))), float32(round(-m * reciprocal(sink_unit)))
    best_s, best_t, error = float32(0), float32(0), float32(-1)
    for i in range(9):
        new_s = min(max(s + float32(i // 3 - 1), float32(0)), float32(most))
        new_t = min(max(t + float32(i % 3 - 1), float32(0)), float32(most))
        new = line_error(a, b, unit * new_s, -sink_unit * new_t, top)
        if error < 0 or new < error:
            best_s, best_t, error = new_s, new_t, new
    return best_s, best_t


# Super-blocks: `blocks` blocks of `size` (16 or 32) weights at x, each with a lane of its own in the vectors of their constants.


@device
def block_at(x, index, size):
    """The weights of a block, twice if there are 16."""
    return load_f32x16(x, index * size), load_f32x16(x, index * size + size - 16)


@device
def fit_lines(x, blocks, size, top, first, step, count):
    """fit_line of each block, its m at most zero: vectors (d, m)."""
    d, m = splat_f32(0), splat_f32(0)
    for i in range(blocks):
        a, b = block_at(x, i, size)
        one, other = fit_line(a, b, top, first, step, count, True)
        d, m = with_lane(d, i, one), with_lane(m, i, other)
    return d, m


@device
def fit_whole_lines(x, blocks, size, unit, sink_unit, d, m, top, most):
    """fit_whole_line of each block: vectors (s, t)."""
    s, t = splat_f32(0), splat_f32(0)
    for i in range(blocks):
        a, b = block_at(x, i, size)
        one, other = fit_whole_line(a, b, unit, sink_unit, lane(d, i), lane(m, i), top, most)
        s, t = with_lane(s, i, one), with_lane(t, i, other)
    return s, t


@device
def fit_scales(code, x, blocks, size, first, step, count):
    """fit_scale of each block, and that of the largest magnitude."""
    d, most = splat_f32(0), float32(0)
    for i in range(blocks):
        a, b = block_at(x, i, size)
        one = fit_scale(code, a, b, first, step, count)
        d = with_lane(d, i, one)
        if abs(one) > abs(most):
            most = one
    return d, most


@device
def fit_whole_scales(code, x, blocks, size, unit, d, low, high):
    """fit_whole_scale of each block."""
    s = splat_f32(0)
    for i in range(blocks):
        a, b = block_at(x, i, size)
        s = with_lane(s, i, fit_whole_scale(code, a, b, unit, lane(d, i), low, high))
    return s


@device
def bits_above(v, step):
    """(v // step, v % step) of whole numbers; step: a power of two."""
    high = floor_f32(v * splat_f32(float32(1) / float32(step)))
    return high, v - splat_f32(step) * high
