"""exp, and the activation functions made of it, on 16 lanes."""

from math import exp as scalar_exp

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import float32, intrinsic
from numatp.kernels.simd import f32x16, fma, max_f32x16, min_f32x16, round_f32, splat_f32

# exp(x) = 2**n * exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2. ln 2 is split in two so that r keeps its bits.
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06
SQRT_2_PI = 0.7978845608028654
SMALLEST, LARGEST = -87.0, 88.0  # 2**n stays a normal float32


@intrinsic
def times_power(typing_context, y, n):
    """y * 2**n for whole n in [-126, 127]."""
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: isa.times_power(builder, *args)


@device
def exp(x):
    """e**x, relative error below 1e-7 * 2; x is limited to [-87, 88]."""
    x = min_f32x16(max_f32x16(x, splat_f32(SMALLEST)), splat_f32(LARGEST))
    n = round_f32(x * splat_f32(LOG2_E))
    r = fma(n, splat_f32(-LN2_LOW), fma(n, splat_f32(-LN2_HIGH), x))
    # Taylor to r**7: its next term is at most 0.35**8 / 8! = 6e-9.
    y = splat_f32(1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = fma(y, r, splat_f32(coefficient))
    return times_power(y, n)


@device
def exp2(x):
    """2**x for x <= 0, relative error below 3e-7; x is limited to -126, below which float32 is slow on some processors."""
    x = max_f32x16(x, splat_f32(-126))
    n = round_f32(x)
    r = x - n  # exact, in [-1/2, 1/2]
    # The polynomial of degree 5 with the smallest relative error there, 7.5e-8.
    y = splat_f32(0.0013276459649205208)
    for coefficient in (0.009675541892647743, 0.05550713464617729, 0.24022120237350464, 0.6931469440460205, 1.0000001192092896):
        y = fma(y, r, splat_f32(coefficient))
    return times_power(y, n)


@device
def sigmoid(x):
    return splat_f32(1) / (splat_f32(1) + exp(splat_f32(0) - x))


@device
def scalar_sigmoid(x):
    """Of one number."""
    return float32(1) / (float32(1) + float32(scalar_exp(-x)))


@device
def silu(x):
    """x * sigmoid(x)."""
    return x / (splat_f32(1) + exp(splat_f32(0) - x))


@device
def softplus(x):
    """log(1 + e**x) = max(x, 0) + log(1 + y) with y = e**-|x|, relative error below 1e-6.

    log(1 + y) = 2 artanh(s) with s = y / (2 + y), at most 1/3: the series' next term is at most s**16 / 17 = 1.4e-9 of it.
    """
    y = exp(min_f32x16(x, splat_f32(0) - x))
    s = y / (y + splat_f32(2))
    series = splat_f32(1 / 15)
    for coefficient in (1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0):
        series = fma(series, s * s, splat_f32(coefficient))
    return fma(s + s, series, max_f32x16(x, splat_f32(0)))


@device
def gelu(x):
    """x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x**3), which is x * sigmoid(2 u)
    (https://arxiv.org/abs/1606.08415, section 2).
    """
    u = x * fma(x * x, splat_f32(0.044715 * SQRT_2_PI), splat_f32(SQRT_2_PI))
    return x * sigmoid(u + u)
