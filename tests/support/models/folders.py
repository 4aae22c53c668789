"""Tiny models as Hugging Face folders: the tensors of a tiny GGUF model under the names, in the order and with the numbers that
transformers gives them. The names here are written down a second time, so that a slip in numatp's tables is seen."""

import json

import numpy as np
import safetensors
import tokenizers
from support.models import tiny, tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next

ENDS = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight",
}  # fmt: skip
LAYER = {
    "attn_norm.weight": "input_layernorm.weight", "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight", "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight", "attn_sinks.weight": "self_attn.attention_sink_bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight", "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight", "ffn_gate_inp.weight": "mlp.gate.weight",
    "ssm_ba.weight": "linear_attn.in_proj_ba.weight", "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias", "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight", "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias", "attn_v.bias": "self_attn.v_proj.bias", "attn_output.bias": "self_attn.o_proj.bias",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight", "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight", "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}  # fmt: skip


def config_of(s, architecture, **more):
    return {
        "architectures": [architecture], "hidden_size": s["width"], "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"], "num_key_value_heads": s["kv_heads"], "head_dim": s["head_size"],
        "intermediate_size": s["ffn"], "vocab_size": s["vocab"], "max_position_embeddings": s["context"],
        "rope_theta": s["rope_base"], "rms_norm_eps": s["epsilon"], "hidden_act": "silu", "tie_word_embeddings": False,
    } | more  # fmt: skip


def renamed(tensors):
    found = {}
    for name, values in tensors.items():
        if name in ENDS:
            found[ENDS[name]] = values
            continue
        _, layer, rest = name.split(".", 2)
        if rest.endswith("_exps.weight"):
            kind = rest.removeprefix("ffn_").removesuffix("_exps.weight")
            for expert, matrix in enumerate(values):
                found[f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"] = matrix
        else:
            found[f"model.layers.{layer}.{LAYER.get(rest, rest)}"] = values
    return found


def llama(tensors, s=tiny.SIZES):
    """A head's pairs, neighbours in GGUF, are halves here."""
    found = renamed(tensors)
    for name, values in found.items():
        if "q_proj" in name or "k_proj" in name:
            found[name] = values.reshape(-1, s["head_size"] // 2, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return config_of(s, "LlamaForCausalLM", tie_word_embeddings="output.weight" not in tensors), found


def to_gguf_llama(tensors, s=tiny.SIZES):
    """The other way, for the naive pass."""
    back = {theirs: ours for ours, theirs in ENDS.items()} | {theirs: ours for ours, theirs in LAYER.items()}
    back["post_attention_layernorm.weight"] = "ffn_norm.weight"
    found = {}
    for name, values in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            values = values.reshape(-1, 2, s["head_size"] // 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        _, _, layer, rest = name.split(".", 3) if name.startswith("model.layers") else ("", "", "", "")
        found[f"blk.{layer}.{back[rest]}" if rest else back[name]] = values
    return found


def qwen3(tensors):
    config = config_of(tiny_qwen3.SIZES, "Qwen3ForCausalLM", tie_word_embeddings=True)
    rope = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}  # as transformers 5 writes it
    return config | {"rope_parameters": rope}, renamed(tensors)


def qwen3moe(tensors):
    s = tiny_qwen3moe.SIZES
    more = {
        "num_experts": s["experts"],
        "num_experts_per_tok": s["used"],
        "moe_intermediate_size": s["ffn"],
        "norm_topk_prob": True,
    }
    return config_of(s, "Qwen3MoeForCausalLM", **more), renamed(tensors)


def cohere2(tensors):
    s = tiny_cohere2.SIZES
    more = {"layer_norm_eps": s["epsilon"], "sliding_window": s["window"], "logit_scale": s["logit_scale"]}
    kinds = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(s["layers"])]
    config = config_of(s, "Cohere2ForCausalLM", layer_types=kinds, **more)
    return {key: value for key, value in config.items() if key not in ("rms_norm_eps", "tie_word_embeddings")}, renamed(tensors)


def qwen3next(tensors, s=tiny_qwen3next.SIZES):
    found = renamed(tensors)
    keys, size = s["key_heads"], s["linear_head_size"]
    for name in list(found):
        if name.endswith("norm.weight") and "linear_attn" not in name:
            found[name] = found[name] - 1
        elif name.endswith("A_log"):
            found[name] = np.log(-found[name])
        elif name.endswith("conv1d.weight"):
            found[name] = found[name][:, None]
        elif name.endswith("attn_qkv.weight"):
            qkv, gate = found.pop(name), found.pop(name.replace("attn_qkv", "attn_gate"))
            q, k, v = np.split(qkv, [keys * size, 2 * keys * size])
            groups = [part.reshape(keys, -1, s["width"]) for part in (q, k, v, gate)]
            found[name.replace("attn_qkv", "linear_attn.in_proj_qkvz")] = np.concatenate(groups, 1).reshape(-1, s["width"])
    more = {
        "linear_num_key_heads": keys, "linear_num_value_heads": s["value_heads"], "linear_key_head_dim": size,
        "linear_value_head_dim": size, "linear_conv_kernel_dim": s["conv_width"], "full_attention_interval": 4, "num_experts": 0,
        "partial_rotary_factor": s["rotated"] / s["head_size"],
    }  # fmt: skip
    return config_of(s, "Qwen3NextForCausalLM", **more), found


def grouped(values, keys, first, size, axis=0):
    """Value heads of `size` along an axis, from `first` on: those of a key head together; GGUF has one of each, then the next."""
    before, own = np.split(values, [first], axis)
    shape = own.shape
    own = own.reshape(*shape[:axis], -1, keys, size, *shape[axis + 1 :]).swapaxes(axis, axis + 1)
    return np.concatenate([before, own.reshape(shape)], axis)


def qwen35(tensors, s):
    """The tensors alone; s: width, key_heads, linear_head_size."""
    found, keys, size = {}, s["key_heads"], s["linear_head_size"]
    linear = {
        "attn_qkv.weight": "in_proj_qkv.weight", "attn_gate.weight": "in_proj_z.weight", "ssm_beta.weight": "in_proj_b.weight",
        "ssm_alpha.weight": "in_proj_a.weight", "ssm_conv1d.weight": "conv1d.weight", "ssm_a": "A_log", "ssm_dt.bias": "dt_bias",
        "ssm_norm.weight": "norm.weight", "ssm_out.weight": "out_proj.weight",
    }  # fmt: skip
    for name, values in tensors.items():
        _, layer, rest = name.split(".", 2) if name.startswith("blk.") else ("", "", name)
        if rest in linear:
            first = 2 * keys * size if rest in ("attn_qkv.weight", "ssm_conv1d.weight") else 0
            of_values = rest in ("attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight", "ssm_out.weight")
            if rest != "ssm_norm.weight":
                axis = 1 if rest == "ssm_out.weight" else 0
                values = grouped(values, keys, first, size if of_values else 1, axis)
            if rest == "ssm_conv1d.weight":
                values = values[:, None]
            found[f"model.layers.{layer}.linear_attn.{linear[rest]}"] = np.log(-values) if rest == "ssm_a" else values
        else:
            ((theirs, values),) = renamed({name: values}).items() if "_exps" not in name else ((None, None),)
            if theirs:
                found[theirs] = values - 1 if theirs.endswith("norm.weight") else values
    return found | renamed({name: values for name, values in tensors.items() if "_exps" in name})


FOLDERS = {"llama": llama, "qwen3": qwen3, "qwen3moe": qwen3moe, "cohere2": cohere2, "qwen3next": qwen3next}
SERIAL = {
    "float32": "float32", "float16": "float16", "uint16": "bfloat16", "int32": "int32", "int64": "int64", "int8": "int8",
    "uint8": "float8_e4m3fn",
}  # fmt: skip


def bf16(values):
    """The nearest bfloat16s, as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _described(name, values):
    kind = values.dtype.names[0] if values.dtype.names else SERIAL[values.dtype.name]
    address = values.ctypes.data
    if name.endswith(("blocks", "scales")) and kind == "float8_e4m3fn":
        kind = "uint8"
    return safetensors.TensorSpec(dtype=kind, shape=values.shape, data_ptr=address, data_len=values.nbytes)


def write(folder, config, tensors, shards=1):
    """tensors: arrays; uint16 stands for BF16 and uint8 for F8_E4M3, which numpy does not have. What else bytes are is the name of
    their one field: [("uint8", np.uint8)].
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    parts = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
    files = ["model.safetensors"] if shards == 1 else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for name, part in zip(files, parts, strict=True):
        arrays = {tensor: np.ascontiguousarray(values) for tensor, values in part.items()}
        described = {tensor: _described(tensor, values) for tensor, values in arrays.items()}
        (folder / name).write_bytes(safetensors.serialize(described, {"format": "pt"}))
    if shards > 1:
        places = {tensor: name for name, part in zip(files, parts, strict=True) for tensor in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_tokenizer(folder, tokenizer, added=None, decoder=None, before=None):
    """tokenizer.json with the vocabulary, merges and words of a tokenizer read from a GGUF file.

    added: (name, whether it is special), by default the original's special tokens; before: the start token of every text.
    """
    if added is None:
        added = [(token, True) for token, kind in zip(tokenizer.tokens, tokenizer.kinds, strict=True) if kind == 3]
    bpe = tokenizers.Tokenizer.from_str(tokenizer._bpe.to_str())
    bpe.decoder = decoder or tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens([name for name, special in added if special])
    bpe.add_tokens([name for name, special in added if not special])
    if before:
        start = [(before, bpe.token_to_id(before))]
        bpe.post_processor = tokenizers.processors.TemplateProcessing(single=f"{before} $A", special_tokens=start)
    bpe.save(str(folder / "tokenizer.json"))


def write_small_tokenizer(folder, size):
    """A byte-level tokenizer.json of `size` tokens, which cannot spell all bytes: a merge, an end, and the first characters."""
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: size - 2]
    vocab = {token: id for id, token in enumerate([*characters, "ab"])}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    bpe.pre_tokenizer, bpe.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    bpe.save(str(folder / "tokenizer.json"))


def folder_of(tokenizer, folder, added=None, decoder=None, before=None, **files):
    folder.mkdir()
    write_tokenizer(folder, tokenizer, added, decoder, before)
    for name, content in ({"config": {}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
