"""Whether a packed tile's weights are finite numbers: one NaN among them may vanish in a softmax, and answers are wrong silently.

A product of small codes is as finite as its scales, so these are looked at, 16 rows at once. A number times zero is zero, unless it
is infinite or none: zeros are summed.
"""

from numatp.kernels.compile import device
from numatp.kernels.simd import fma, load_f16x16, offset, splat_f32, sum_f32x16, widen
from numatp.kernels.superblock import shared, touched


@device
def add_zeros(total, values):
    """total, a sum of zeros, plus 16 values times zero."""
    return fma(values, splat_f32(0), total)


@device
def are_zeros(total):
    return sum_f32x16(total) == 0


def units_finite(unit_bytes, place, count):
    """The `finite` of a format with `count` times 16 float16 numbers from byte `place` of each unit on."""

    @device
    def finite(tile, units):
        total = splat_f32(0)
        for unit in range(units):
            for i in range(count):
                total = add_zeros(total, widen(load_f16x16(offset(tile, unit * unit_bytes + place), i * 16)))
        return are_zeros(total)

    return finite


def supers_finite(super_bytes, unit_bytes, halves=None):
    """The `finite` of a format whose super-blocks share float16 numbers, `halves` times 16, or nothing else."""
    count = super_bytes // 32 if halves is None else halves

    @device
    def finite(tile, units):
        total = splat_f32(0)
        for index in range(touched(tile, units)):
            both = shared(tile, index, super_bytes, unit_bytes)
            for i in range(count):
                total = add_zeros(total, widen(load_f16x16(both, i * 16)))
        return are_zeros(total)

    return finite


def values_finite(load):
    """The `finite` of a format whose tiles are the values themselves. load: device function (tile, k), the k-th 16 as float32."""

    @device
    def finite(tile, units):
        a, b, c, d = splat_f32(0), splat_f32(0), splat_f32(0), splat_f32(0)  # which do not wait for each other
        for k in range(0, units * 32, 4):
            a, b = add_zeros(a, load(tile, k)), add_zeros(b, load(tile, k + 1))
            c, d = add_zeros(c, load(tile, k + 2)), add_zeros(d, load(tile, k + 3))
        return are_zeros((a + b) + (c + d))

    return finite
