"""Mistral's own folders, as Mistral Large 3 is released: params.json, and tensors in consolidated.safetensors by names of its own.

Both are told in the words of a Hugging Face folder of Mistral Small 4, which computes the same.
"""

import re
from pathlib import Path

from numatp.files.gguf_header import fail, quote
from numatp.files.layouts import Config

PARAMS, WEIGHTS = "params.json", "consolidated"
KEYS = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps", "vocab_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "max_position_embeddings": "max_position_embeddings", "q_lora_rank": "q_lora_rank", "qk_rope_head_dim": "qk_rope_head_dim",
    "qk_nope_head_dim": "qk_nope_head_dim", "kv_lora_rank": "kv_lora_rank", "v_head_dim": "v_head_dim", "activation": "hidden_act",
}  # fmt: skip
MOE = {
    "first_k_dense_replace": "first_k_dense_replace", "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok", "num_expert_groups": "n_group", "num_expert_groups_per_tok": "topk_group",
    "routed_scale": "routed_scaling_factor", "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
}  # fmt: skip
YARN = {
    "factor": "factor", "original_max_position_embeddings": "original_max_position_embeddings", "beta": "beta_fast",
    "alpha": "beta_slow",
}  # fmt: skip
# What says nothing of what is computed: head_dim is of models without latent attention, and the others are of its training.
SILENT = ("head_dim", "model_type", "max_seq_len", "vision_encoder", "max_batch_size")
VISION = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")
ENDS = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
PARTS = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate",
    "attention.wq_a": "self_attn.q_a_proj", "attention.q_a_norm": "self_attn.q_a_layernorm", "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a_with_mqa": "self_attn.kv_a_proj_with_mqa", "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj", "attention.wo": "self_attn.o_proj", "attention.wq": "self_attn.q_proj",
}  # fmt: skip
MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PLACES = re.compile(r"(feed_forward|shared_experts|experts\.\d+)\.(w[123])")
LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(\w+)")
SCALES = {"qscale_weight": "weight_scale", "qscale_act": "input_scale"}  # of weights in 8 bits


def is_own(folder: Path) -> bool:
    """Whether a folder has nothing but Mistral's own description."""
    return (folder / PARAMS).exists() and not (folder / "config.json").exists()


def config_of(path: Path, params: Config) -> Config:
    """What config.json would say. UserError for what is not latent attention with experts, and for what nobody knows here."""
    moe, yarn, heat = (params.get(key) or {} for key in ("moe", "yarn", "llama_4_scaling"))
    if not isinstance(moe, dict) or not moe or params.get("kv_lora_rank") is None:
        fail(path, "is of a model without latent attention or experts, which numatp reads from a folder with config.json only")
    known = {**KEYS, **dict.fromkeys(SILENT), "rope_theta": None, "moe": None, "yarn": None, "llama_4_scaling": None}
    known |= {"quantization": None}
    _check(path, params, known, {})
    _check(path, moe, MOE, {"route_every_n": (1,), "expert_parallel": (), "expert_model_parallel": ()})
    _check(path, yarn, YARN, {"apply_scale": (False,)})
    trained = yarn.get("original_max_position_embeddings")
    _check(path, heat, {"beta": ""}, {"original_max_position_embeddings": (trained,)})
    config = {theirs: params[ours] for ours, theirs in KEYS.items() if params.get(ours) is not None}
    config |= {theirs: moe[ours] for ours, theirs in MOE.items() if moe.get(ours) is not None}
    rope: Config = {"rope_type": "default", "rope_theta": params.get("rope_theta", 10000.0)}
    if yarn:
        rope |= {theirs: yarn[ours] for ours, theirs in YARN.items() if ours in yarn}
        rope |= {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}
    if heat:
        rope |= {"llama_4_scaling_beta": heat.get("beta"), "original_max_position_embeddings": trained}
    found = {"architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4", "scoring_func": "softmax", "norm_topk_prob": True}
    return {**config, **found, "rope_parameters": rope, **_quantization(path, params.get("quantization"))}


def _check(path: Path, given: Config, known: Config, only: dict[str, tuple[object, ...]]) -> None:
    """UserError for a key that is not known, or whose value is none of those (): any."""
    for key, value in given.items():
        if not (key in known or value is None or (key in only and (not only[key] or value in only[key]))):
            fail(path, f"has {quote(key)}: {quote(value)}, which numatp cannot compute; use another model")


def _quantization(path: Path, given: object) -> Config:
    if given is None:
        return {}
    if not isinstance(given, dict) or given.get("qformat_weight") != "fp8_e4m3":
        fail(path, f"is quantized by {quote(given)}, and numatp knows 'fp8_e4m3' in Mistral's own folders; use another model")
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}


def name_of(tensor: str) -> str:
    """What a Hugging Face folder calls it: "" for images; what is not known is called as here."""
    if tensor.startswith(VISION):
        return ""
    match = LAYER.fullmatch(tensor)
    if not match:
        return ENDS.get(tensor, tensor)
    layer, part, last = match.groups()
    place = PLACES.fullmatch(part)
    if place:
        part = f"mlp.{place[1]}.{MATRICES[place[2]]}".replace("mlp.feed_forward", "mlp")
    elif part in PARTS:
        part = PARTS[part]
    else:
        return tensor
    return f"model.layers.{layer}.{part}.{SCALES.get(last, last)}"
