"""A file or folder whose weights are no finite numbers is refused when it is loaded, by the tensor's name."""

import ctypes
import json

import numpy as np
import pytest
from support.models import folders, quantized_folders, tiny

from numatp import models
from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.weights.load import Weights
from numatp.weights.rules import cut
from numatp.weights.splits import split

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def load(path, quantize="none"):
    """All of the weights, on this thread."""
    file, model = models.open_model(path)
    spec = model.read_spec(file)
    slices, num_bytes = cut(file, model.rules(spec), spec.sizes, split(spec.sizes, 0, 1), quantize)
    arena = np.zeros(num_bytes + 64, np.uint8)

    def run(calls):
        for kernel, record in calls:
            KERNEL(kernel.address)(record.ctypes.data, 0, 1)

    Weights(slices, arena.ctypes.data + -arena.ctypes.data % 64).load(1, [0], run, lambda done, total: None)


@pytest.mark.parametrize(
    ("name", "matrix_type", "place", "number", "quantize"),
    [
        ("blk.0.attn_q.weight", "Q4_0", 0, np.float16(np.nan), "none"),
        ("blk.1.attn_k.weight", "F32", 0, np.float32(np.nan), "none"),
        ("blk.1.attn_k.weight", "F32", 0, np.float32(np.inf), "q4"),
        ("token_embd.weight", "Q8_0", -34, np.float16(-np.inf), "none"),
        ("blk.1.attn_norm.weight", "Q8_0", 4, np.float32(np.nan), "none"),
    ],
)
def test_a_file(tmp_path, name, matrix_type, place, number, quantize):
    path = tmp_path / "model.gguf"
    tiny.write(path, matrix_type)
    load(path, quantize)
    info = read_gguf(path).tensors[name]
    with open(path, "r+b") as file:
        file.seek(info.offset + place % info.num_bytes)
        file.write(number.tobytes())
    with pytest.raises(UserError) as failure:
        load(path, quantize)
    assert str(failure.value) == f"{path}: tensor '{name}' holds weights that are no finite numbers; download it again"


def test_a_folder(tmp_path):
    """A scale of a quantised matrix, which becomes a block's without being converted."""
    config, tensors = folders.llama(tiny.write(tmp_path / "tiny.gguf"))
    folder, _ = quantized_folders.write_llama(tmp_path / "folder", "awq", config, tensors)
    load(folder)
    name = "model.layers.0.self_attn.q_proj.scales"
    for path in folder.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:begin])
        if name in header:
            start = begin + header[name]["data_offsets"][0]
            raw[start : start + 2] = np.float16(np.nan).tobytes()
            path.write_bytes(raw)
            with pytest.raises(UserError) as failure:
                load(folder)
    what = "tensor 'model.layers.0.self_attn.q_proj.weight' holds weights that are no finite numbers; download it again"
    assert str(failure.value) == f"{folder / 'model.safetensors'}: {what}"
