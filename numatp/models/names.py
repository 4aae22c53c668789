"""What Hugging Face folders of many architectures call things: keys of config.json and tensors, by GGUF's names."""

from collections.abc import Callable
from typing import Any

import numpy as np

from numatp.files.folder import rope_scaling, rope_type
from numatp.files.huggingface import Stored
from numatp.files.layouts import Config

# What nearly all architectures have under these names.
CONFIG: dict[str, str | Callable[[Config], Any]] = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": rope_type,
    "rope.scaling.factor": lambda config: rope_scaling(config).get("factor"),
    "rope.scaling.original_context_length": lambda config: rope_scaling(config).get("original_max_position_embeddings"),
    "rope.scaling.yarn_beta_fast": lambda config: rope_scaling(config).get("beta_fast"),
    "rope.scaling.yarn_beta_slow": lambda config: rope_scaling(config).get("beta_slow"),
    "rope.scaling.yarn_attn_factor": lambda config: rope_scaling(config).get("attention_factor"),
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ATTENTION = {
    f"blk.{{layer}}.{ours}.weight": f"model.layers.{{layer}}.{theirs}.weight"
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
    )
}
QKV_BIAS = {f"blk.{{layer}}.attn_{name}.bias": f"model.layers.{{layer}}.self_attn.{name}_proj.bias" for name in "qkv"}
FFN = {f"blk.{{layer}}.ffn_{name}.weight": f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
EXPERTS = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": f"model.layers.{{layer}}.mlp.experts.{{expert}}.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp.weight": "model.layers.{layer}.mlp.gate.weight"}


MIXTURE: dict[str, str | Callable[[Config], Any]] = {
    "expert_count": lambda config: config.get("num_experts", config.get("num_local_experts")),
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
SHARED_EXPERT = {
    f"blk.{{layer}}.ffn_{name}_shexp.weight": f"model.layers.{{layer}}.mlp.shared_expert.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp_shexp.weight": "model.layers.{layer}.mlp.shared_expert_gate.weight"}


def layer_types(kind: str, period: str) -> Callable[[Config], Any]:
    """A flag per layer: whether it is of that kind; or, in older folders, what they call the period after which one is not."""

    def read(config: Config) -> Any:
        kinds = config.get("layer_types")
        return config.get(period) if kinds is None else [one == kind for one in kinds]

    return read


def plus_one(name: str) -> Stored:
    """A norm that multiplies by 1 + weight."""
    return Stored(name, values=lambda weight: weight + np.float32(1))
