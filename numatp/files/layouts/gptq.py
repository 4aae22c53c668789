"""GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel store it: 4 or 8 bits, a scale s and a zero z per group of
columns; weight = s * (q - z).

qweight int32 (columns * bits / 32, rows): a word holds codes of columns that follow each other, the lowest first. qzeros (groups,
rows * bits / 32): likewise along the rows, each 1 too small but in the second version. scales (groups, rows). g_idx (columns): the
group of each column, which with activation order ("desc_act") is not the column's place: 32 columns then share no scale, and the
matrix is requantised. So is one of 8 bits with zeros, whose codes no type of GGUF holds.
"""

import numpy as np

from numatp.files.blocks import from_bits, groups_of, q4_0, q4_1, q8_0
from numatp.files.layouts import Config, Fail, Parts, Rows, expect, floating, groups_by_column, need, need_shape, type_of
from numatp.files.safetensors import floats, read_box

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def is_quantized(parts: Parts) -> bool:
    return "qweight" in parts


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "bits", settings.get("bits"), (4, 8))
    expect(fail, "sym", settings.get("sym", True), (True, False))
    expect(fail, "checkpoint_format", settings.get("checkpoint_format", "gptq"), ("gptq", "gptq_v2"))
    group = settings.get("group_size")
    if type(group) is not int or (group != -1 and (group <= 0 or group % 32)):
        expect(fail, "group_size", group, (-1, 32, 64, 128))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> "Matrix":
    return Matrix(name, parts, settings, fail)


class Matrix:
    def __init__(self, name: str, parts: Parts, settings: Config, fail: Fail):
        need(parts, SUFFIXES[:3], name, fail)
        self.fail, self.bits = fail, int(settings["bits"])
        self.weights, self.zeros, self.scales = parts["qweight"], parts["qzeros"], parts["scales"]
        self.one = settings.get("checkpoint_format", "gptq") == "gptq"
        self.symmetric = settings.get("sym", True)
        floating(self.scales)
        words, rows = (*self.weights.shape, 0, 0)[:2]
        columns = words * 32 // self.bits
        self.shape = (rows, columns)
        self.group = columns if settings["group_size"] == -1 else int(settings["group_size"])
        groups = -(-columns // max(self.group, 1))
        for info, kind, shape in (
            (self.weights, "I32", (words, rows)), (self.zeros, "I32", (groups, rows * self.bits // 32)),
            (self.scales, self.scales.type, (groups, rows)),
        ):  # fmt: skip
            need_shape(info, kind, shape)
        self.group_of, ordered = groups_by_column(parts.get("g_idx"), columns, self.group, fail)
        self.type, self.note = type_of("GPTQ", self.bits, self.symmetric, ordered)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        if not len(rows):
            return lambda some: np.empty((0, len(columns) * 4), np.uint8)
        per_word, first = 32 // self.bits, int(rows.min()) // 8 * 8
        own_rows = range(first, -(-(int(rows.max()) + 1) // 8) * 8)
        words = range(columns.start // per_word, columns.stop // per_word)
        groups = range(0, self.scales.shape[0])
        if self.type != "F32":
            groups = range(columns.start // self.group, -(-columns.stop // self.group))
        weights = read_box(self.weights, words, own_rows).view(np.uint8).reshape(len(words), len(own_rows), 4)
        scales = floats(read_box(self.scales, groups, own_rows), self.scales.type)
        zero_words = range(own_rows.start // per_word, -(-own_rows.stop // per_word))
        packed = read_box(self.zeros, groups, zero_words).view(np.uint8).reshape(len(groups), -1)
        zeros = from_bits(packed, self.bits).astype(np.float32) + self.one
        middle = 1 << self.bits - 1
        if self.symmetric and (zeros[:, : len(own_rows)] != middle).any():
            self.fail(f"tensor '{self.zeros.name}' has zeros that are not {middle}, which \"sym\" promises; download it again")

        def read(some: slice) -> np.ndarray:
            own = rows[some] - first
            q = from_bits(weights[:, own].transpose(1, 0, 2).reshape(len(own), -1), self.bits)
            if self.type == "F32":
                group = self.group_of[columns.start : columns.stop]
                values = (q - zeros[:, own].T[:, group]) * scales[:, own].T[:, group]
                return np.ascontiguousarray(values, np.float32).view(np.uint8)
            group = groups_of(columns, self.group)
            s, z = scales[:, own][group].T, zeros[:, own][group].T
            if self.bits == 8:
                return q8_0((q ^ 128).view(np.int8), s.astype(np.float16))
            if self.symmetric:
                return q4_0(q, s.astype(np.float16))
            return q4_1(q, s.astype(np.float16), (-s * z).astype(np.float16))

        return read
