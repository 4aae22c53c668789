"""GGUF files from before the matrices of latent attention were stored apart: attn_kv_b has of each head its rows for keys, then
those for values, as folders have it.

Values keep their blocks. Keys are wanted with rows as columns, which no block of other rows can give: they become floats, and on
load 8 bits unless the file has floats (1/254 of a block's largest weight, where 4 bits have lost 1/16).
"""

from typing import Any

import numpy as np

from numatp import quants
from numatp.files.gguf import GGUFFile
from numatp.files.huggingface import Assembled
from numatp.files.layouts import Layout, Plain, Rows, Turned
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import FLOATS, read_bytes

END = "attn_kv_b.weight"


class Blocks:
    """Rows of a GGUF file as they are."""

    note = ""

    def __init__(self, info: TensorInfo):
        self.info, self.type, self.shape = info, info.type, (info.shape[0], info.shape[1])

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        format = quants.format_of(self.type, self.info.name)
        width, first, last = (format.bytes_of(count) for count in (self.shape[1], columns.start, columns.stop))

        def read(some: slice) -> np.ndarray:
            raw = [read_bytes(self.info, int(row) * width, width) for row in rows[some]]
            whole = np.concatenate(raw).reshape(-1, width) if raw else np.empty((0, width), np.uint8)
            return np.concatenate([whole[:, : format.row_bytes], whole[:, first:last]], axis=1)

        return read


class Numbers:
    """The float32 of a layout's rows."""

    type = "F32"

    def __init__(self, layout: Layout):
        self._layout, self.shape, self.note = layout, layout.shape, f"{layout.type} by columns"

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        whole = self._layout.cut(rows, range(self.shape[1]))

        def read(some: slice) -> np.ndarray:
            values = quants.kernels_of(self._layout.type).unpack(whole(some))[:, columns.start : columns.stop]
            return np.ascontiguousarray(values).view(np.uint8)

        return read


def split_kv_b(file: GGUFFile) -> None:
    """From now on the file has attn_k_b and attn_v_b, and says so in its metadata."""
    name = file.text("general.architecture")
    stored = [tensor for tensor in file.tensors if tensor.endswith(f".{END}")]
    if not stored or file.integer(f"{name}.attention.key_length_mla", default=0):
        return
    heads, key, value = (file.count(f"{name}.attention.{one}") for one in ("head_count", "key_length", "value_length"))
    rotated, latent = file.count(f"{name}.rope.dimension_count"), file.count(f"{name}.attention.kv_lora_rank")
    tensors: dict[str, Any] = file.tensors
    for tensor in stored:
        info = tensors[tensor]
        if not isinstance(info, TensorInfo) or info.shape != (heads * (key - rotated + value), latent) or key <= rotated:
            file.fail(
                f"tensor '{tensor}' has shape {info.shape}, and should have {heads} heads' keys and values; download it again"
            )
        rows = np.arange(info.shape[0]).reshape(heads, -1)
        blocks: Layout = Plain(info) if info.type in FLOATS else Blocks(info)
        turned = Turned(blocks if info.type in FLOATS else Numbers(blocks), heads, rows.shape[1], key - rotated, file.fail)
        del tensors[tensor]
        for kind, piece, shape, order in (
            ("k_b", turned, (heads, latent, key - rotated), None),
            ("v_b", blocks, (heads, value, latent), rows[:, key - rotated :].ravel()),
        ):
            own = tensor.replace(END, f"attn_{kind}.weight")
            tensors[own] = Assembled(tensor, piece.type, shape, info.path, info.num_bytes, (piece,), order)
    for key_name, number in (("key_length_mla", key), ("value_length_mla", value)):
        file.metadata.replace(f"{name}.attention.{key_name}", number)
