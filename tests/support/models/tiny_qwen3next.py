"""A tiny random Qwen3-Next model as a GGUF file, without experts: layer 3 of 5 has attention, the others the gated delta rule."""

import gguf
import numpy as np

SIZES = {
    "width": 96, "heads": 6, "kv_heads": 2, "head_size": 32, "rotated": 8, "rope_base": 1000.0, "key_heads": 5, "value_heads": 10,
    "linear_head_size": 32, "conv_width": 4, "ffn": 160, "vocab": 200, "layers": 5, "epsilon": 1e-5, "context": 640,
}  # fmt: skip


def shapes():
    s = SIZES
    width, keys, values = s["width"], s["key_heads"] * s["linear_head_size"], s["value_heads"] * s["linear_head_size"]
    found = {"token_embd.weight": (s["vocab"], width), "output_norm.weight": (width,), "output.weight": (s["vocab"], width)}
    for i in range(s["layers"]):
        if i % 4 == 3:
            layer = {
                "attn_q.weight": (s["heads"] * 2 * s["head_size"], width),
                "attn_k.weight": (s["kv_heads"] * s["head_size"], width),
                "attn_v.weight": (s["kv_heads"] * s["head_size"], width),
                "attn_q_norm.weight": (s["head_size"],),
                "attn_k_norm.weight": (s["head_size"],),
                "attn_output.weight": (width, s["heads"] * s["head_size"]),
            }
        else:
            layer = {
                "attn_qkv.weight": (2 * keys + values, width),
                "attn_gate.weight": (values, width),
                "ssm_ba.weight": (2 * s["value_heads"], width),
                "ssm_conv1d.weight": (2 * keys + values, s["conv_width"]),
                "ssm_a": (s["value_heads"],),
                "ssm_dt.bias": (s["value_heads"],),
                "ssm_norm.weight": (s["linear_head_size"],),
                "ssm_out.weight": (width, values),
            }
        layer |= {
            "attn_norm.weight": (width,),
            "post_attention_norm.weight": (width,),
            "ffn_gate.weight": (s["ffn"], width),
            "ffn_up.weight": (s["ffn"], width),
            "ffn_down.weight": (width, s["ffn"]),
        }
        found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return found


def values_of(name, shape, rng):
    if name.endswith("ssm_a"):  # decays exp(a * softplus(...)) from nearly 1 to a tenth
        return -rng.uniform(0.02, 1.5, shape)
    if name.endswith("bias"):
        return rng.uniform(-2, 1, shape)
    return rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.standard_normal(shape) / np.sqrt(shape[1])


def writer_of(path):
    s, writer = SIZES, gguf.GGUFWriter(str(path), "qwen3next")
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
    writer.add_rope_dimension_count(s["rotated"])
    writer.add_full_attention_interval(4)
    writer.add_ssm_conv_kernel(s["conv_width"])
    writer.add_ssm_state_size(s["linear_head_size"])
    writer.add_ssm_group_count(s["key_heads"])
    writer.add_ssm_time_step_rank(s["value_heads"])
    writer.add_ssm_inner_size(s["value_heads"] * s["linear_head_size"])
    writer.add_vocab_size(s["vocab"])
    return writer


def write(path, matrix_type="F32"):
    """Writes the model and returns its tensors as float arrays, as the file's format rounds them."""
    rng, writer, tensors = np.random.default_rng(0), writer_of(path), {}
    for name, shape in shapes().items():
        data = values_of(name, shape, rng).astype(np.float32)
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 or "conv1d" in name else matrix_type]
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        tensors[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
