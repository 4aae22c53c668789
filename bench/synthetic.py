"""A GGUF file of random weights at the shape of a real model: `python bench/synthetic.py llama-3.2-1b Q4_0 FILE [--layers N]`

For speed and memory, which do not depend on what the weights are. TYPE is a format (all matrices, and Q6_K for the matrix that
makes the logits, as llama.cpp quantises), or one of llama.cpp's mixes (MIXED); --pure leaves the logits' matrix in TYPE too.
The vocabulary has the model's size and rule for words, and tokens that llama.cpp and numatp both accept.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import gguf
import numpy as np

from numatp.quants.mixes import MIXES, Mix, fitting, gets_better, output_type
from numatp.quants.table import FORMATS

LLAMA_3 = {
    "arch": "llama", "head_size": 128, "kv_heads": 8, "vocab": 128256, "context": 131072, "epsilon": 1e-5, "rope_base": 500000.0,
    "words": "llama-bpe",
}  # fmt: skip
QWEN_3 = {
    "arch": "qwen3", "head_size": 128, "kv_heads": 8, "vocab": 151936, "context": 40960, "epsilon": 1e-6, "rope_base": 1e6,
    "words": "qwen2",
}  # fmt: skip
QWEN_3_MOE = QWEN_3 | {"arch": "qwen3moe", "kv_heads": 4, "experts": 128, "used": 8}
MODELS = {
    "smollm2-135m": LLAMA_3 | {
        "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_size": 64, "ffn": 1536, "vocab": 49152, "context": 8192,
        "rope_base": 100000.0, "words": "smollm", "tied": True,
    },
    "llama-3.2-1b": LLAMA_3 | {"layers": 16, "width": 2048, "heads": 32, "head_size": 64, "ffn": 8192, "tied": True},
    "llama-3.2-3b": LLAMA_3 | {"layers": 28, "width": 3072, "heads": 24, "ffn": 8192, "tied": True},
    "llama-3.1-8b": LLAMA_3 | {"layers": 32, "width": 4096, "heads": 32, "ffn": 14336},
    "llama-3.1-70b": LLAMA_3 | {"layers": 80, "width": 8192, "heads": 64, "ffn": 28672},
    "qwen3-0.6b": QWEN_3 | {"layers": 28, "width": 1024, "heads": 16, "ffn": 3072, "tied": True},
    "qwen3-8b": QWEN_3 | {"layers": 36, "width": 4096, "heads": 32, "ffn": 12288},
    "qwen3-32b": QWEN_3 | {"layers": 64, "width": 5120, "heads": 64, "ffn": 25600},
    "qwen3.5-4b": {
        "arch": "qwen35", "layers": 32, "width": 2560, "heads": 16, "kv_heads": 4, "head_size": 256, "rotated": 64, "ffn": 9216,
        "full_every": 4, "linear_keys": 16, "linear_values": 32, "linear_head_size": 128, "conv_width": 4, "vocab": 248320,
        "context": 262144, "epsilon": 1e-6, "rope_base": 1e7, "words": "qwen2", "tied": True,
    },
    "qwen3-30b-a3b": QWEN_3_MOE | {"layers": 48, "width": 2048, "heads": 32, "ffn": 6144, "expert_ffn": 768},
    "deepseek-v2-lite": {
        "arch": "deepseek2", "layers": 27, "width": 2048, "heads": 16, "kv_heads": 1, "head_size": 576, "value_size": 512,
        "nope": 128, "rotated": 64, "value": 128, "latent": 512, "ffn": 10944, "dense": 1, "experts": 64, "used": 6,
        "expert_ffn": 1408, "shared": 2, "vocab": 102400, "context": 163840, "epsilon": 1e-6, "rope_base": 10000.0,
        "words": "qwen2",
    },
    "qwen3-235b-a22b": QWEN_3_MOE | {"layers": 94, "width": 4096, "heads": 64, "ffn": 12288, "expert_ffn": 1536},
}  # fmt: skip

WRITTEN = ("F32", "F16", "BF16", "MXFP4", "TQ2_0")  # by the gguf package; the codes of random bytes have another mean in TQ2_0
VECTORS = {"ssm_a": -0.5}  # of which values all others are 1: a state loses half of its logarithm's softplus with each token
# Types of which random bytes make weights.
SCALES = {name: row.scales for name, row in FORMATS.items() if name == "NVFP4" or (row.scales and name not in WRITTEN)}
NVFP4_SCALES = 2 * gguf.quants.NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8))  # of each byte
# llama.cpp's mixes, and the layers that get the better type for ffn_down and attn_v.
MIXED = {name: (mix, gets_better) for name, mix in MIXES.items()}
MIXED["Q4_K_S"] = Mix("Q4_K", "Q5_K", 14), lambda layer, layers: layer < layers // 8
CHUNK = 32 << 20  # bytes of a matrix that are made and written at a time


def shapes(s):
    """Name -> shape, rows first."""
    found = {"token_embd": (s["vocab"], s["width"]), "output_norm": (s["width"],)}
    if not s.get("tied"):
        found["output"] = (s["vocab"], s["width"])
    for i in range(s["layers"]):
        recurrent = (i + 1) % s.get("full_every", 1) > 0
        mixes = linear if recurrent else latent if "latent" in s else attention
        layer = {"attn_norm": (s["width"],), **mixes(s), "post_attention_norm" if "full_every" in s else "ffn_norm": (s["width"],)}
        if s["arch"].startswith("qwen3") and not recurrent:
            layer |= {"attn_q_norm": (s["head_size"],), "attn_k_norm": (s["head_size"],)}
        if "experts" in s and i >= s.get("dense", 0):
            wide, narrow = (s["experts"], s["expert_ffn"], s["width"]), (s["experts"], s["width"], s["expert_ffn"])
            layer |= {"ffn_gate_inp": (s["experts"], s["width"])}
            layer |= {"ffn_gate_exps": wide, "ffn_up_exps": wide, "ffn_down_exps": narrow}
            if shared := s.get("shared", 0) * s["expert_ffn"]:
                layer |= {"ffn_gate_shexp": (shared, s["width"]), "ffn_up_shexp": (shared, s["width"])}
                layer |= {"ffn_down_shexp": (s["width"], shared)}
        else:
            layer |= {"ffn_gate": (s["ffn"], s["width"]), "ffn_up": (s["ffn"], s["width"]), "ffn_down": (s["width"], s["ffn"])}
        found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return found


def attention(s):
    """Of a layer."""
    inner, kv = s["heads"] * s["head_size"], s["kv_heads"] * s["head_size"]
    queries = 2 * inner if "full_every" in s else inner  # with a head's gates behind its queries
    return {
        "attn_q": (queries, s["width"]), "attn_k": (kv, s["width"]), "attn_v": (kv, s["width"]), "attn_output": (s["width"], inner),
    }  # fmt: skip


def linear(s):
    """Of a layer with a gated delta rule."""
    keys, values = (s[name] * s["linear_head_size"] for name in ("linear_keys", "linear_values"))
    heads = s["linear_values"]
    return {
        "attn_qkv": (2 * keys + values, s["width"]), "attn_gate": (values, s["width"]), "ssm_beta": (heads, s["width"]),
        "ssm_alpha": (heads, s["width"]), "ssm_conv1d": (2 * keys + values, s["conv_width"]), "ssm_a": (heads,),
        "ssm_dt.bias": (heads,), "ssm_norm": (s["linear_head_size"],), "ssm_out": (s["width"], values),
    }  # fmt: skip


def latent(s):
    """The same over latent rows."""
    heads = s["heads"]
    return {
        "attn_q": (heads * (s["nope"] + s["rotated"]), s["width"]), "attn_kv_a_mqa": (s["latent"] + s["rotated"], s["width"]),
        "attn_kv_a_norm": (s["latent"],), "attn_k_b": (heads, s["latent"], s["nope"]), "attn_v_b": (heads, s["value"], s["latent"]),
        "attn_output": (s["width"], heads * s["value"]),
    }  # fmt: skip


def format_of(name, shape, s, kind, head):
    """The format in which llama.cpp would quantise the matrix."""
    if len(shape) == 1 or name.endswith(("ffn_gate_inp", "ssm_conv1d")):
        return "F32"
    if name == ("token_embd" if s.get("tied") else "output"):
        chosen = head
    elif kind in MIXED:
        mix, where = MIXED[kind]
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        special = layer is not None and name.split(".")[2].startswith(("ffn_down", "attn_v"))
        chosen = mix.better if special and where(layer, s["layers"]) else mix.base
    else:
        chosen = kind
    return fitting(chosen, shape[-1]) or "F16"


def add_vocabulary(writer, size, words):
    """The 256 bytes, then words of two and three letters with the merge that makes each, then two special tokens."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256))
    letters = [chr(byte) if byte in printable else next(others) for byte in range(256)]
    tokens, merges = list(letters), []
    for i in range(size - 2 - len(letters)):
        left, right = tokens[i // 256], letters[i % 256]  # words of three letters begin with those of two
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list([*tokens, "<|begin_of_text|>", "<|end_of_text|>"])
    writer.add_token_types([1] * len(tokens) + [3, 3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)


def add_metadata(writer, name, s):
    writer.add_name(f"{name}, random weights")
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_key_length(s["head_size"])
    writer.add_value_length(s.get("value_size", s["head_size"]))
    writer.add_rope_dimension_count(s.get("rotated", s["head_size"]))
    if "full_every" in s:
        writer.add_full_attention_interval(s["full_every"])
        writer.add_ssm_conv_kernel(s["conv_width"])
        writer.add_ssm_state_size(s["linear_head_size"])
        writer.add_ssm_group_count(s["linear_keys"])
        writer.add_ssm_time_step_rank(s["linear_values"])
        writer.add_ssm_inner_size(s["linear_values"] * s["linear_head_size"])
    if "latent" in s:
        writer.add_kv_lora_rank(s["latent"])
        writer.add_key_length_mla(s["nope"] + s["rotated"])
        writer.add_value_length_mla(s["value"])
        writer.add_leading_dense_block_count(s["dense"])
        writer.add_expert_shared_count(s["shared"])
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_layer_norm_rms_eps(s["epsilon"])
    writer.add_rope_freq_base(s["rope_base"])
    writer.add_vocab_size(s["vocab"])
    if "experts" in s:
        writer.add_expert_count(s["experts"])
        writer.add_expert_used_count(s["used"])
        writer.add_expert_feed_forward_length(s["expert_ffn"])
    add_vocabulary(writer, s["vocab"], s["words"])


class Blocks:
    """Random blocks of one format, whose values have mean 0 and a chosen deviation."""

    def __init__(self, kind, rng):
        self.kind, self.rng = gguf.GGMLQuantizationType[kind], rng
        self.block, self.block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        self.random = kind in SCALES
        if self.random:
            self.deviation = float(gguf.quants.dequantize(self.make(4096 * self.block, 1.0), self.kind).std())

    def make(self, values, deviation):
        """uint8 of so many values."""
        if not self.random:
            data = self.rng.standard_normal(values, np.float32) * np.float32(deviation)
            return gguf.quants.quantize(data, self.kind).view(np.uint8).reshape(-1)
        num_bytes = values // self.block * self.block_bytes
        raw = self.rng.integers(0, 1 << 64, -(-num_bytes // 8), np.uint64).view(np.uint8)[:num_bytes]
        blocks = raw.reshape(-1, self.block_bytes)
        unit = deviation / getattr(self, "deviation", 1.0)
        if self.kind.name == "NVFP4":  # bytes near the scale, whose mean it is
            above = int(np.searchsorted(NVFP4_SCALES, unit))
            part = (unit - NVFP4_SCALES[above - 1]) / (NVFP4_SCALES[above] - NVFP4_SCALES[above - 1])
            blocks[:, :4] = above - (self.rng.random((len(blocks), 4), np.float32) > part)
        for place, times in SCALES[self.kind.name].items():
            blocks[:, place : place + 2] = np.frombuffer(np.float16(unit * times).tobytes(), np.uint8)
        return raw


def write(path, name, kind, layers=None, pure=False, seed=0):
    """Writes the file at `path`; `name` of MODELS, `kind` of SCALES, WRITTEN or MIXED."""
    s = MODELS[name] | ({"layers": layers} if layers else {})
    base = MIXED[kind][0].base if kind in MIXED else kind
    head = base if pure else output_type(base)
    rng = np.random.Generator(np.random.SFC64(seed))
    writer = gguf.GGUFWriter(str(path), s["arch"])
    add_metadata(writer, name, s)
    plan = [(tensor, shape, format_of(tensor, shape, s, kind, head)) for tensor, shape in shapes(s).items()]
    makers = {chosen: Blocks(chosen, rng) for chosen in {chosen for _, _, chosen in plan}}
    for tensor, shape, chosen in plan:
        maker = makers[chosen]
        row_bytes = shape[-1] // maker.block * maker.block_bytes
        num_bytes = math.prod(shape[:-1]) * row_bytes
        stored = tensor if tensor.endswith(("ssm_a", ".bias")) else f"{tensor}.weight"
        writer.add_tensor_info(stored, (*shape[:-1], row_bytes), np.dtype(np.uint8), num_bytes, maker.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for tensor, shape, chosen in plan:
        left, maker = math.prod(shape), makers[chosen]
        if len(shape) == 1:
            file.write(np.full(left, VECTORS.get(tensor.rpartition(".")[2], 1), np.float32))
        while len(shape) > 1 and left:
            count = min(left, CHUNK // maker.block_bytes * maker.block)
            file.write(maker.make(count, 1 / math.sqrt(shape[-1])))
            left -= count
        writer.write_padding(file, file.tell())
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    kinds = [*MIXED, *SCALES, *WRITTEN]
    parser.add_argument("type", choices=kinds, metavar="TYPE", help=", ".join(kinds))
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, metavar="N", help="instead of all")
    parser.add_argument("--pure", action="store_true", help="the matrix that makes the logits in TYPE too")
    options = parser.parse_args()
    began = time.perf_counter()
    write(options.file, options.model, options.type, options.layers, options.pure)
    size, took = options.file.stat().st_size / 1e9, time.perf_counter() - began
    print(f"{options.file}: {size:.2f} GB in {took:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
