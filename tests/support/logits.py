"""How logits are compared: as norms, with tolerances from what is rounded."""

import numpy as np

# Largest relative error of a row of logits, as norms. F32, F16 and BF16 multiply exactly what naive.py multiplies: what is left is
# float32 sums and now and then another rounding of a cached float16. The quantised formats round activations to 8 bits, a step of
# about 2.5 / 127 of a block's size per value, sqrt(12) smaller as noise, over about 10 products in a chain, with a factor of 2.
F16_ROUNDING = 2.0**-11
TOLERANCE = {
    "F32": F16_ROUNDING, "F16": F16_ROUNDING, "BF16": F16_ROUNDING,
    "Q8_0": 0.04, "Q4_0": 0.04, "Q4_1": 0.04, "Q5_0": 0.04, "Q5_1": 0.04,
}  # fmt: skip


def error(got, wanted):
    return (np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max()


def eight_bits(rows):
    """Blocks of 32 values as 8-bit integers times a scale, which is how quantised formats take their rows."""
    blocks = rows.reshape(len(rows), -1, 32)
    scales = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.rint(blocks / scales) * scales).reshape(rows.shape)


def log_probabilities(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
