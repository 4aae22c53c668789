"""8-bit floats (e4m3, https://arxiv.org/abs/2209.05433) as in Qwen3-FP8: a scale per block of 128 x 128 weights, or one in all.

weight F8_E4M3 (rows, columns); weight_scale_inv (rows / 128, columns / 128), rounded up: weight * scale. No type of GGUF holds
these floats: they are requantised. A block of Q8_0 is exact to 1/254 of its largest weight, such a float to 1/32 of itself.
DeepSeek-V4 has powers of two as scales (e8m0, "scale_fmt" ue8m0: the byte b means 2^(b - 127)), may call them NAME.scale, and has
its experts as floats of 4 bits: weight int8 (rows, columns / 2) with a scale for 32 columns, which are the numbers of MXFP4.
"""

import numpy as np

from numatp.files.layouts import Config, Fail, Layout, Parts, Rows, expect, floating, mxfp4, need, need_shape
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import read_bytes, read_floats, read_rows

SUFFIXES = ("weight", "weight_scale_inv", "weight_scale", "scale", "input_scale")
POWERS = ("F8_E8M0", "U8")  # types of scales that are powers of two
NO_POWER = 255


def _table() -> np.ndarray:
    """The float32 of each byte: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; not-a-number only if all bits are set."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _table()


def is_quantized(parts: Parts) -> bool:
    return "weight" in parts and parts["weight"].type in ("F8_E4M3", "I8")


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "fmt", settings.get("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    expect(fail, "scale_fmt", settings.get("scale_fmt", "float"), ("float", "ue8m0"))
    expect(fail, "expert_dtype", settings.get("expert_dtype", "fp8"), ("fp8", "fp4"))
    size = settings.get("weight_block_size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        expect(fail, "weight_block_size", size, ([128, 128],))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> Layout:
    size, weight = settings.get("weight_block_size"), parts["weight"]
    scale = "scale" if "scale" in parts else "weight_scale_inv" if size else "weight_scale"
    need(parts, (scale,), name, fail)
    if weight.type == "I8":
        return mxfp4.Matrix(weight, parts[scale])
    return Matrix(weight, parts[scale], tuple(size) if size else weight.shape, fail)


class Matrix:
    """block: (rows, columns) that share a scale; the scales (blocks down, blocks across), or one number."""

    type, note = "F32", "FP8"

    def __init__(self, weight: TensorInfo, scales: TensorInfo, block: tuple[int, ...], fail: Fail):
        need_shape(weight, "F8_E4M3", (*weight.shape, 0, 0)[:2])
        self.weight, self.fail, self.block = weight, fail, block
        self.shape = (weight.shape[0], weight.shape[1])
        if scales.type not in POWERS:
            floating(scales)
        blocks = tuple(-(-size // max(unit, 1)) for size, unit in zip(self.shape, block, strict=True))
        if blocks != (1, 1) or scales.shape not in ((), (1,)):
            need_shape(scales, scales.type, blocks)
        self.scales = scales

    def _read_scales(self) -> np.ndarray:
        if self.scales.type not in POWERS:
            return read_floats(self.scales)
        powers = read_bytes(self.scales, 0, self.scales.num_bytes)
        if (powers == NO_POWER).any():
            self.fail(f"tensor '{self.scales.name}' has scales that are no numbers; download it again")
        return np.ldexp(np.float32(1), powers.astype(np.int32) - 127)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        scales = self._read_scales().reshape(-(-self.shape[0] // self.block[0]), -1)
        across = np.arange(columns.start, columns.stop) // self.block[1]

        def read(some: slice) -> np.ndarray:
            own = rows[some]
            values = E4M3[read_rows(self.weight, own)[:, columns.start : columns.stop]]
            if np.isnan(values).any():
                self.fail(f"tensor '{self.weight.name}' has weights that are no numbers; download it again")
            values *= scales[own // self.block[0]][:, across]
            return values.view(np.uint8)

        return read
