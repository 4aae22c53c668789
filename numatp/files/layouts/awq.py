"""AWQ (https://arxiv.org/abs/2306.00978) as AutoAWQ's "gemm" version stores it: 4 bits, a float16 scale s and a zero z per group of
32 or more columns; weight = s * (q - z).

qweight int32 (columns, rows / 8) and qzeros (groups, rows / 8): of a word's nibbles, the lowest first, those of rows
0, 2, 4, 6, 1, 3, 5, 7. scales (groups, rows). As Q4_1 the scales are exact and -s * z is rounded to float16.
"""

import numpy as np

from numatp.files.blocks import groups_of, q4_1
from numatp.files.layouts import Config, Fail, Parts, Rows, expect, floating, need, need_shape
from numatp.files.safetensors import floats, read_box

SUFFIXES = ("qweight", "qzeros", "scales")
NIBBLE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where a word has the row of that number


def is_quantized(parts: Parts) -> bool:
    return "qweight" in parts


def check(settings: Config, fail: Fail) -> None:
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    expect(fail, "bits", bits, (4,))
    expect(fail, "version", str(settings.get("version", "gemm")).lower(), ("gemm",))
    expect(fail, "zero_point", settings.get("zero_point", True), (True,))
    if type(group) is not int or group <= 0 or group % 32:
        expect(fail, "group_size", group, (32, 64, 128))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    return Matrix(name, parts, settings.get("group_size") or settings["q_group_size"], fail)


class Matrix:
    type, note = "Q4_1", ""

    def __init__(self, name: str, parts: Parts, group: int, fail: Fail):
        need(parts, SUFFIXES, name, fail)
        self.weights, self.zeros, self.scales, self.group = parts["qweight"], parts["qzeros"], parts["scales"], group
        floating(self.scales)
        columns, words = (*self.weights.shape, 0)[:2]
        self.shape = (words * 8, columns)
        groups = -(-columns // group)
        for info, kind, shape in (
            (self.weights, "I32", (columns, words)), (self.zeros, "I32", (groups, words)),
            (self.scales, self.scales.type, (groups, words * 8)),
        ):  # fmt: skip
            need_shape(info, kind, shape)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        if not len(rows):
            return lambda some: np.empty((0, len(columns) // 32 * 20), np.uint8)
        words = range(int(rows.min()) // 8, int(rows.max()) // 8 + 1)
        groups = range(columns.start // self.group, -(-columns.stop // self.group))
        weights, zeros = read_box(self.weights, columns, words).view(np.uint8), read_box(self.zeros, groups, words).view(np.uint8)
        first, group = words.start * 8, groups_of(columns, self.group)
        scales = floats(read_box(self.scales, groups, range(first, words.stop * 8)), self.scales.type)

        def read(some: slice) -> np.ndarray:
            own = rows[some] - first
            s, z = scales[:, own][group].T, codes(zeros, own)[group].T
            return q4_1(np.ascontiguousarray(codes(weights, own).T), s.astype(np.float16), (-s * z).astype(np.float16))

        return read


def codes(packed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of uint8 (columns, 4 * words) the nibbles of some rows, (columns, rows)."""
    nibble = NIBBLE[rows % 8]
    return packed[:, rows // 8 * 4 + nibble // 2] >> (4 * (nibble % 2)).astype(np.uint8) & 15
