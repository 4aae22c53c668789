"""Tiny random models as GGUF files, written by the gguf package: sizes that no number of ranks splits evenly."""

import gguf
import numpy as np

SIZES = {
    "width": 96, "heads": 9, "kv_heads": 3, "head_size": 32, "ffn": 160, "vocab": 200, "layers": 2,
    "epsilon": 1e-5, "rope_base": 10000.0, "context": 256,
}  # fmt: skip


def shapes_of(s, tied):
    shapes = {"token_embd": (s["vocab"], s["width"]), "output_norm": (s["width"],)}
    if not tied:
        shapes["output"] = (s["vocab"], s["width"])
    for i in range(s["layers"]):
        shapes |= {
            f"blk.{i}.attn_norm": (s["width"],),
            f"blk.{i}.attn_q": (s["heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_k": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_v": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_output": (s["width"], s["heads"] * s["head_size"]),
            f"blk.{i}.ffn_norm": (s["width"],),
            f"blk.{i}.ffn_gate": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_up": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_down": (s["width"], s["ffn"]),
        }
    return shapes


def writer_of(path, architecture, s):
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(s["epsilon"])
    writer.add_rope_freq_base(s["rope_base"])
    writer.add_rope_dimension_count(s["head_size"])
    return writer


def write(path, matrix_type="F32", tied=False, architecture="llama", leave_out=(), seed=0):
    """Writes the model and returns its tensors as float arrays, as the file's format rounds them."""
    rng, writer, tensors = np.random.default_rng(seed), writer_of(path, architecture, SIZES), {}
    for name, shape in shapes_of(SIZES, tied).items():
        if name in leave_out:
            continue
        if len(shape) == 1:
            data, kind = rng.uniform(0.5, 1.5, shape).astype(np.float32), gguf.GGMLQuantizationType.F32
        else:
            data = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            kind = gguf.GGMLQuantizationType[matrix_type]
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        tensors[f"{name}.weight"] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_huge(path):
    """A model of some terabytes whose file is a header and a hole."""
    s = SIZES | {"width": 8192, "ffn": 1 << 20, "layers": 64}
    writer = writer_of(path, "llama", s)
    for name, shape in shapes_of(s, tied=True).items():
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "r+b") as file:
        file.truncate(8 << 40)
