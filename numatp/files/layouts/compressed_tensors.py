"""compressed-tensors, as llm-compressor writes it: whole numbers of 4 or 8 bits with a scale per group of columns or per row
("pack-quantized"), of 8 bits per row ("int-quantized"), 8-bit floats ("float-quantized"), or floats of 4 bits: MXFP4 and NVFP4.

weight_packed int32 (rows, columns * bits / 32): codes q + 2^(bits - 1), lowest bits first; weight_scale (rows, groups), and where
it is not symmetric weight_zero_point (rows * bits / 32, groups), packed down the rows: weight = scale * (q - zero). Otherwise
weight int8 or F8_E4M3 (rows, columns). How a folder wants its activations does not matter: rows are quantised in blocks of 32 as
for every 8-bit product. Scales are rounded to float16.
"mxfp4-pack-quantized": weight_packed uint8 (rows, columns / 2), two floats per byte, and weight_scale, the bytes of powers of two.
"nvfp4-pack-quantized": the same with weight_scale F8_E4M3 (rows, columns / 16), all divided by weight_global_scale.
"""

from typing import Any

import numpy as np

from numatp.files.blocks import from_bits, groups_of, q4_0, q4_1, q8_0
from numatp.files.gguf_header import quote
from numatp.files.layouts import (
    Config,
    Fail,
    Layout,
    Parts,
    Rows,
    expect,
    floating,
    fp8,
    groups_by_column,
    modelopt,
    mxfp4,
    need,
    need_shape,
    type_of,
)
from numatp.files.safetensors import floats, read_box, read_rows

SUFFIXES = (
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale",
    "input_zero_point", "weight_global_scale", "input_global_scale",
)  # fmt: skip
BITS = {
    "pack-quantized": (4, 8), "int-quantized": (8,), "float-quantized": (8,), "nvfp4-pack-quantized": (4,),
    "mxfp4-pack-quantized": (4,),
}  # fmt: skip
STRATEGIES = {
    "pack-quantized": ("group", "channel"), "int-quantized": ("channel",), "float-quantized": ("channel", "tensor"),
    "nvfp4-pack-quantized": ("tensor_group",), "mxfp4-pack-quantized": ("group",),
}  # fmt: skip
GROUPS = {"nvfp4-pack-quantized": (16,), "mxfp4-pack-quantized": (32,)}


def is_quantized(parts: Parts) -> bool:
    return "weight_packed" in parts or ("weight" in parts and parts["weight"].type in ("I8", "F8_E4M3"))


def _weights(settings: Config) -> list[Any]:
    groups = settings.get("config_groups")
    return (
        [group.get("weights") if isinstance(group, dict) else None for group in groups.values()] if isinstance(groups, dict) else []
    )


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "format", settings.get("format"), tuple(BITS))
    found = _weights(settings)
    if not found or any(not isinstance(weights, dict) or weights != found[0] for weights in found):
        fail('its "config_groups" quantize weights in several ways or none, and numatp needs one; use another model')
    (weights, *_), kind = found, settings["format"]
    expect(fail, "num_bits", weights.get("num_bits"), BITS[kind])
    expect(fail, "type", weights.get("type", "int"), ("int",) if kind in ("pack-quantized", "int-quantized") else ("float",))
    expect(fail, "strategy", weights.get("strategy"), STRATEGIES[kind])
    expect(fail, "symmetric", weights.get("symmetric", True), (True, False) if kind == "pack-quantized" else (True,))
    group = weights.get("group_size")
    if kind in GROUPS:
        expect(fail, "group_size", group, GROUPS[kind])
    elif weights["strategy"] == "group" and (type(group) is not int or group <= 0 or group % 32):
        expect(fail, "group_size", group, (32, 64, 128))


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> Layout:
    weights = _weights(settings)[0]
    need(parts, ("weight_scale",), name, fail)
    if settings["format"] == "mxfp4-pack-quantized" and "weight_packed" in parts:
        return mxfp4.Matrix(parts["weight_packed"], parts["weight_scale"])
    if settings["format"] == "nvfp4-pack-quantized" and "weight_packed" in parts:
        need(parts, ("weight_global_scale",), name, fail)
        divisor = modelopt.read_number(parts["weight_global_scale"])
        if not divisor > 0:
            fail(f"tensor {quote(parts['weight_global_scale'].name)} is {divisor:g}, and should be above 0; download it again")
        return modelopt.Matrix(parts["weight_packed"], parts["weight_scale"], 1 / divisor, fail)
    if "weight_packed" in parts:
        return Packed(name, parts, weights, fail)
    if parts["weight"].type == "F8_E4M3":
        weight = parts["weight"]
        block = weight.shape if weights["strategy"] == "tensor" else (1, *weight.shape[1:])
        return fp8.Matrix(weight, parts["weight_scale"], block, fail)
    return Bytes(parts, fail)


class Packed:
    def __init__(self, name: str, parts: Parts, settings: Config, fail: Fail):
        self.bits, self.symmetric = int(settings["num_bits"]), settings.get("symmetric", True)
        self.weights, self.scales = parts["weight_packed"], parts["weight_scale"]
        rows, words = (*self.weights.shape, 0, 0)[:2]
        columns = words * 32 // self.bits
        self.shape = (rows, columns)
        self.group = int(settings["group_size"]) if settings["strategy"] == "group" else columns
        groups = -(-columns // max(self.group, 1))
        floating(self.scales)
        need_shape(self.weights, "I32", (rows, words))
        need_shape(self.scales, self.scales.type, (rows, groups))
        if not self.symmetric:
            need(parts, ("weight_zero_point",), name, fail)
            self.zeros = parts["weight_zero_point"]
            need_shape(self.zeros, "I32", (-(-rows * self.bits // 32), groups))
        self.group_of, ordered = groups_by_column(parts.get("weight_g_idx"), columns, self.group, fail)
        self.type, self.note = type_of("compressed-tensors", self.bits, self.symmetric, ordered)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        zeros = None
        if not self.symmetric:
            words = read_box(self.zeros, range(self.zeros.shape[0]), range(self.zeros.shape[1])).T
            zeros = from_bits(np.ascontiguousarray(words).view(np.uint8), self.bits).T.astype(np.float32)  # (rows, groups)

        def read(some: slice) -> np.ndarray:
            own = rows[some]
            packed = read_rows(self.weights, own).view(np.uint8)[:, columns.start * self.bits // 8 : columns.stop * self.bits // 8]
            q, scales = from_bits(packed, self.bits), floats(read_rows(self.scales, own), self.scales.type)
            z = np.full_like(scales, 1 << self.bits - 1) if zeros is None else zeros[own]
            if self.type == "F32":
                group = self.group_of[columns.start : columns.stop]
                return ((q - z[:, group]) * scales[:, group]).astype(np.float32).view(np.uint8)
            group = groups_of(columns, self.group) + columns.start // self.group
            s, z = scales[:, group], z[:, group]
            if self.bits == 8:
                return q8_0((q ^ 128).view(np.int8), s.astype(np.float16))
            return q4_0(q, s.astype(np.float16)) if self.symmetric else q4_1(q, s.astype(np.float16), (-s * z).astype(np.float16))

        return read


class Bytes:
    """int8 with a scale per row."""

    type, note = "Q8_0", ""

    def __init__(self, parts: Parts, fail: Fail):
        self.weights, self.scales = parts["weight"], parts["weight_scale"]
        self.shape = (self.weights.shape[0], self.weights.shape[-1])
        floating(self.scales)
        need_shape(self.weights, "I8", self.shape)
        need_shape(self.scales, self.scales.type, (self.shape[0], 1))

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        def read(some: slice) -> np.ndarray:
            q = np.ascontiguousarray(read_rows(self.weights, rows[some])[:, columns.start : columns.stop])
            scales = floats(read_rows(self.scales, rows[some]), self.scales.type)
            return q8_0(q, scales.astype(np.float16).repeat(len(columns) // 32, axis=1))

        return read
