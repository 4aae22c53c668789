"""NVFP4 as NVIDIA's ModelOpt stores it: floats of 4 bits (e2m1), of 8 bits (e4m3) a scale for 16 of them, and a factor of all.

weight uint8 (rows, columns / 2), two floats per byte, the first in the low bits; weight_scale F8_E4M3 (rows, columns / 16);
weight_scale_2 float32: weight * scale * factor. Scales of activations and of the cache are not needed.
"""

import numpy as np

from numatp.files.blocks import from_bits, nvfp4
from numatp.files.gguf_header import quote
from numatp.files.layouts import Config, Fail, Parts, Rows, expect, need, need_shape
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import read_floats, read_rows

SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")


def is_quantized(parts: Parts) -> bool:
    return "weight" in parts and parts["weight"].type == "U8"


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "quant_algo", settings.get("quant_algo"), ("NVFP4",))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    need(parts, ("weight_scale", "weight_scale_2"), name, fail)
    return Matrix(parts["weight"], parts["weight_scale"], read_number(parts["weight_scale_2"]), fail)


def read_number(info: TensorInfo) -> float:
    """The one float of a tensor."""
    if info.num_bytes != 4 or info.type != "F32":
        need_shape(info, "F32", ())
    return float(read_floats(info).ravel()[0])


class Matrix:
    type, note = "NVFP4", ""

    def __init__(self, pairs: TensorInfo, scales: TensorInfo, factor: float, fail: Fail):
        """factor: of all weights."""
        rows, half = (*pairs.shape, 0, 0)[:2]
        need_shape(pairs, "U8", (rows, half))
        need_shape(scales, "F8_E4M3", (rows, half // 8))
        self.pairs, self.scales, self.factor, self.fail = pairs, scales, factor, fail
        self.shape = (rows, half * 2)
        if half % 32:
            fail(f"tensor {quote(pairs.name)} has {half * 2} columns, and NVFP4 needs a multiple of 64; use another model")

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        """columns: whole blocks of 64."""

        def read(some: slice) -> np.ndarray:
            pairs = read_rows(self.pairs, rows[some])[:, columns.start // 2 : columns.stop // 2]
            scales = read_rows(self.scales, rows[some])[:, columns.start // 16 : columns.stop // 16]
            if (scales >= 127).any():  # those from 128 on are below zero
                self.fail(f"tensor {quote(self.scales.name)} has scales that are below zero or no numbers; download it again")
            return nvfp4(from_bits(pairs, 4), scales)

        return read
