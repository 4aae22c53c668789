"""8-bit floats (e4m3, https://arxiv.org/abs/2209.05433) as in Qwen3-FP8: a scale per block of 128 x 128 weights, or one in all.

weight F8_E4M3 (rows, columns); weight_scale_inv (rows / 128, columns / 128), rounded up: weight * scale. No type of GGUF holds
these floats: they are requantised. A block of Q8_0 is exact to 1/254 of its largest weight, such a float to 1/32 of itself.
"""

import numpy as np

from numatp.files.layouts import Config, Fail, Parts, Rows, expect, floating, need, need_shape
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import read_floats, read_rows

SUFFIXES = ("weight", "weight_scale_inv", "weight_scale", "input_scale")


def _table() -> np.ndarray:
    """The float32 of each byte: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; not-a-number only if all bits are set."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _table()


def is_quantized(parts: Parts) -> bool:
    return "weight" in parts and parts["weight"].type == "F8_E4M3"


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "fmt", settings.get("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    size = settings.get("weight_block_size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        expect(fail, "weight_block_size", size, ([128, 128],))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    size, weight = settings.get("weight_block_size"), parts["weight"]
    scale = "weight_scale_inv" if size else "weight_scale"
    need(parts, (scale,), name, fail)
    return Matrix(weight, parts[scale], tuple(size) if size else weight.shape, fail)


class Matrix:
    """block: (rows, columns) that share a scale; the scales (blocks down, blocks across), or one number."""

    type, note = "F32", "FP8"

    def __init__(self, weight: TensorInfo, scales: TensorInfo, block: tuple[int, ...], fail: Fail):
        need_shape(weight, "F8_E4M3", (*weight.shape, 0, 0)[:2])
        self.weight, self.fail, self.block = weight, fail, block
        self.shape = (weight.shape[0], weight.shape[1])
        floating(scales)
        blocks = tuple(-(-size // max(unit, 1)) for size, unit in zip(self.shape, block, strict=True))
        if blocks != (1, 1) or scales.shape not in ((), (1,)):
            need_shape(scales, scales.type, blocks)
        self.scales = scales

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        scales = read_floats(self.scales).reshape(-(-self.shape[0] // self.block[0]), -1)
        across = np.arange(columns.start, columns.stop) // self.block[1]

        def read(some: slice) -> np.ndarray:
            own = rows[some]
            values = E4M3[read_rows(self.weight, own)[:, columns.start : columns.stop]]
            if np.isnan(values).any():
                self.fail(f"tensor '{self.weight.name}' has weights that are no numbers; download it again")
            values *= scales[own // self.block[0]][:, across]
            return values.view(np.uint8)

        return read
