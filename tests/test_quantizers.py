"""Float weights to each format: closer to them than rounding to the nearest, and readable by the gguf package."""

import gguf
import numpy as np
import pytest

from numatp import quants

FORMATS = quants.writable()
PLAIN = ["F32", "F16", "BF16"]
# What plain rounding does per block: (weights of a block, values, whether a minimum is taken off). Super-blocks have to store their
# scales in few bits; this rounding keeps them in float32, and is to be beaten all the same.
ROUNDING = {
    "Q4_0": (32, range(-8, 8), False), "Q4_1": (32, range(16), True), "Q5_0": (32, range(-16, 16), False),
    "Q5_1": (32, range(32), True), "Q8_0": (32, range(-127, 128), False), "Q2_K": (16, range(4), True),
    "Q3_K": (16, range(-4, 4), False), "Q4_K": (32, range(16), True), "Q5_K": (32, range(32), True),
    "Q6_K": (16, range(-32, 32), False), "IQ4_NL": (32, quants.kernels_of("IQ4_NL").VALUES, False),
    "IQ4_XS": (32, quants.kernels_of("IQ4_NL").VALUES, False),
}  # fmt: skip


def dequantized(raw, format_name):
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[format_name])


def rounded_to_nearest(x, block, values, with_minimum):
    """x with the largest magnitude of each block on the first value; with a minimum, its range on all values."""
    blocks, values = x.reshape(-1, block).astype(np.float64), np.array(values, np.float64)
    minimum = blocks.min(-1, keepdims=True) if with_minimum else np.zeros((len(blocks), 1))
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scale = (blocks.max(-1, keepdims=True) - minimum) / values[-1] if with_minimum else largest / values[0]
    middles = (values[1:] + values[:-1]) / 2
    return (values[np.searchsorted(middles, (blocks - minimum) / scale)] * scale + minimum).reshape(x.shape)


def rmse(x, y, counts=1):
    """counts: how much each error does."""
    return np.sqrt(np.mean(counts * (x - y.astype(np.float64)) ** 2))


def samples(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1024)) if kind == "normal" else rng.standard_t(4, (64, 1024))
    return (0.02 * x).astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
@pytest.mark.parametrize("format_name", ROUNDING)
def test_beats_rounding_to_nearest(format_name, kind):
    """In squared errors, which count by the weight's magnitude where there is no minimum; and then not worse in plain ones."""
    x, with_minimum = samples(kind), ROUNDING[format_name][2]
    ours = dequantized(quants.quantize(format_name, x), format_name)
    theirs, counts = rounded_to_nearest(x, *ROUNDING[format_name]), 1 if with_minimum else np.abs(x)
    assert rmse(x, ours, counts) < 0.97 * rmse(x, theirs, counts)
    assert rmse(x, ours) < rmse(x, theirs)


def test_mxfp4_beats_the_gguf_package():
    x = samples("normal")
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType.MXFP4)
    ours = quants.quantize("MXFP4", x)
    assert rmse(x, dequantized(ours, "MXFP4"), np.abs(x)) < 0.95 * rmse(x, dequantized(theirs, "MXFP4"), np.abs(x))


@pytest.mark.parametrize("format_name", PLAIN)
def test_plain_formats_are_the_gguf_packages_bits(format_name):
    x = samples("normal") * np.float32(1e3) ** np.random.default_rng(1).integers(-2, 2, (64, 1))
    theirs = gguf.quants.quantize(x.astype(np.float32), gguf.GGMLQuantizationType[format_name]).view(np.uint8)
    assert (quants.quantize(format_name, x) == theirs).all()


@pytest.mark.parametrize("format_name", FORMATS)
def test_unusual_weights(format_name):
    """Zeros, equal ones, one alone, very small and very large ones: finite, and no further off than the block's largest weight."""
    x = np.zeros((8, 512), np.float32)
    x[1], x[2], x[3, 77], x[4], x[5] = 0.5, -0.5, -3.0, 1e-35, 3e4
    x[6] = np.where(np.arange(512) % 2, 1e-3, -2e-3)
    x[7] = np.random.default_rng(0).uniform(0.4, 0.6, 512)
    y = dequantized(quants.quantize(format_name, x), format_name)
    assert (y[0] == 0).all()
    assert (np.abs(y - x).max(-1) <= 0.2 * np.abs(x).max(-1) + 1e-6).all(), np.abs(y - x).max(-1)
