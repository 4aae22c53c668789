"""A tiny random Qwen3 model as a GGUF file: heads larger than width / heads, and tied to its embedding."""

import gguf
import numpy as np

SIZES = {
    "width": 96, "heads": 6, "kv_heads": 2, "head_size": 32, "rotated": 32, "rope_base": 1000.0, "ffn": 160, "vocab": 200,
    "layers": 2, "epsilon": 1e-5, "context": 640,
}  # fmt: skip


def shapes():
    s = SIZES
    found = {"token_embd.weight": (s["vocab"], s["width"]), "output_norm.weight": (s["width"],)}
    for i in range(s["layers"]):
        layer = {
            "attn_norm": (s["width"],),
            "attn_q": (s["heads"] * s["head_size"], s["width"]),
            "attn_k": (s["kv_heads"] * s["head_size"], s["width"]),
            "attn_v": (s["kv_heads"] * s["head_size"], s["width"]),
            "attn_q_norm": (s["head_size"],),
            "attn_k_norm": (s["head_size"],),
            "attn_output": (s["width"], s["heads"] * s["head_size"]),
            "ffn_norm": (s["width"],),
            "ffn_gate": (s["ffn"], s["width"]),
            "ffn_up": (s["ffn"], s["width"]),
            "ffn_down": (s["width"], s["ffn"]),
        }
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def writer_of(path):
    s, writer = SIZES, gguf.GGUFWriter(str(path), "qwen3")
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_key_length(s["head_size"])
    writer.add_value_length(s["head_size"])
    writer.add_layer_norm_rms_eps(s["epsilon"])
    writer.add_rope_freq_base(s["rope_base"])
    writer.add_vocab_size(s["vocab"])
    return writer


def write(path, matrix_type="F32"):
    """Writes the model and returns its tensors as float arrays, as the file's format rounds them."""
    rng, writer, tensors = np.random.default_rng(0), writer_of(path), {}
    for name, shape in shapes().items():
        data = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.standard_normal(shape) / np.sqrt(shape[1])
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else matrix_type]
        packed = gguf.quants.quantize(data.astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        tensors[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
