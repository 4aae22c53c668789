"""MXFP4 (OCP Microscaling Formats 1.0) as gpt-oss stores the matrices of all experts: 32 floats e2m1 with a scale e8m0.

NAME_blocks uint8 (experts, rows, columns / 32, 16): two floats per byte, the first in the low bits; NAME_scales uint8 (experts,
rows, columns / 32). GGUF has the same numbers, a block's first half in the low bits. Its name to us is NAME_weight.
"""

from dataclasses import replace

import numpy as np

from numatp.files.blocks import from_bits, nibbles
from numatp.files.layouts import Config, Fail, Parts, Rows, need, need_shape
from numatp.files.safetensors import read_rows

SUFFIXES = ("blocks", "scales")


def is_quantized(parts: Parts) -> bool:
    return "blocks" in parts


def check(settings: Config, fail: Fail) -> None:
    pass


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    need(parts, SUFFIXES, name, fail)
    return Matrix(parts)


class Matrix:
    """The experts' rows below each other."""

    type, note = "MXFP4", ""

    def __init__(self, parts: Parts):
        blocks, scales = parts["blocks"], parts["scales"]
        experts, rows, groups = (*blocks.shape, 0, 0, 0)[:3]
        need_shape(blocks, "U8", (experts, rows, groups, 16))
        need_shape(scales, "U8", (experts, rows, groups))
        self.shape = (experts * rows, groups * 32)
        self.blocks = replace(blocks, shape=(experts * rows, groups * 16))
        self.scales = replace(scales, shape=(experts * rows, groups))

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        def read(some: slice) -> np.ndarray:
            codes = read_rows(self.blocks, rows[some])[:, columns.start // 2 : columns.stop // 2]
            scales = read_rows(self.scales, rows[some])[:, columns.start // 32 : columns.stop // 32]
            return np.concatenate([scales[..., None], nibbles(from_bits(codes, 4))], axis=-1).reshape(len(codes), -1)

        return read
