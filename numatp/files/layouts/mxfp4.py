"""MXFP4 (OCP Microscaling Formats 1.0) as gpt-oss stores the matrices of all experts: 32 floats e2m1 with a scale e8m0.

NAME_blocks uint8 (experts, rows, columns / 32, 16): two floats per byte, the first in the low bits; NAME_scales uint8 (experts,
rows, columns / 32). GGUF has the same numbers, a block's first half in the low bits. Its name to us is NAME_weight.
"""

from dataclasses import replace

import numpy as np

from numatp.files.blocks import from_bits, mxfp4
from numatp.files.layouts import Config, Fail, Parts, Rows, need, need_shape
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import read_rows

SUFFIXES = ("blocks", "scales")


def is_quantized(parts: Parts) -> bool:
    return "blocks" in parts


def check(settings: Config, fail: Fail) -> None:
    pass


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    need(parts, SUFFIXES, name, fail)
    blocks, scales = parts["blocks"], parts["scales"]
    experts, rows, groups = (*blocks.shape, 0, 0, 0)[:3]
    need_shape(blocks, "U8", (experts, rows, groups, 16))
    need_shape(scales, "U8", (experts, rows, groups))
    # The experts' rows below each other.
    return Matrix(replace(blocks, shape=(experts * rows, groups * 16)), replace(scales, shape=(experts * rows, groups)))


class Matrix:
    """Two floats per byte, (rows, columns / 2), and the bytes of the scales, (rows, columns / 32)."""

    type, note = "MXFP4", ""

    def __init__(self, pairs: TensorInfo, scales: TensorInfo):
        rows, half = (*pairs.shape, 0, 0)[:2]
        need_shape(pairs, pairs.type if pairs.type == "I8" else "U8", (rows, half))
        need_shape(scales, scales.type if scales.type == "F8_E8M0" else "U8", (rows, half // 16))
        self.pairs, self.scales = pairs, scales
        self.shape = (rows, half * 2)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        def read(some: slice) -> np.ndarray:
            pairs = read_rows(self.pairs, rows[some]).view(np.uint8)[:, columns.start // 2 : columns.stop // 2]
            scales = read_rows(self.scales, rows[some])[:, columns.start // 32 : columns.stop // 32]
            return mxfp4(from_bits(pairs, 4), scales)

        return read
