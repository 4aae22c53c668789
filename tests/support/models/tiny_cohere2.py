"""A tiny random Cohere2 model as a GGUF file: its window is no multiple of a cache block, and layer 3 of 5 sees all tokens."""

import gguf
import numpy as np

SIZES = {
    "width": 288, "heads": 9, "kv_heads": 3, "head_size": 32, "ffn": 160, "vocab": 200, "layers": 5, "window": 70,
    "epsilon": 1e-5, "rope_base": 1000.0, "logit_scale": 0.3, "context": 640,
}  # fmt: skip


def shapes():
    s = SIZES
    found = {"token_embd": (s["vocab"], s["width"]), "output_norm": (s["width"],)}
    for i in range(s["layers"]):
        found |= {
            f"blk.{i}.attn_norm": (s["width"],),
            f"blk.{i}.attn_q": (s["heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_k": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_v": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_output": (s["width"], s["heads"] * s["head_size"]),
            f"blk.{i}.ffn_gate": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_up": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_down": (s["width"], s["ffn"]),
        }
    return found


def writer_of(path):
    s, writer = SIZES, gguf.GGUFWriter(str(path), "cohere2")
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_eps(s["epsilon"])
    writer.add_rope_freq_base(s["rope_base"])
    writer.add_rope_dimension_count(s["head_size"])
    writer.add_sliding_window(s["window"])
    writer.add_logit_scale(s["logit_scale"])
    writer.add_vocab_size(s["vocab"])
    return writer


def write(path, matrix_type="F32"):
    """Writes the model and returns its tensors as float arrays, as the file's format rounds them."""
    rng, writer, tensors = np.random.default_rng(0), writer_of(path), {}
    for name, shape in shapes().items():
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
