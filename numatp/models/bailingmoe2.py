"""Ling 2 and Ring 2 (mini, flash, 1T): experts routed in groups (routed.py), norms of heads, of which a half turns."""

from functools import partial
from typing import Any

from numatp.files.huggingface import HuggingFace
from numatp.files.layouts import Config
from numatp.models.names import EXPERTS, FFN, ONLY, part_of_heads
from numatp.models.routed import (
    FFN_NORM,
    ROUTED_CONFIG,
    SHARED_EXPERTS,
    SIGMOID,
    Style,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style(bias_may_lack=True)


def _shared_width(config: Config) -> Any:
    return config.get("moe_shared_expert_intermediate_size") or config["num_shared_experts"] * config["moe_intermediate_size"]


LAYER = "model.layers.{layer}"
HEAD_NORMS = {
    "blk.{layer}.attn_q_norm.weight": f"{LAYER}.attention.query_layernorm.weight",
    "blk.{layer}.attn_k_norm.weight": f"{LAYER}.attention.key_layernorm.weight",
}
HUGGING_FACE = HuggingFace(
    # What the code beside the released weights takes: transformers itself has no such class.
    classes={
        "BailingMoeV2ForCausalLM": {
            "rms_norm_eps": 1e-6, "rope_theta": 600000.0, "partial_rotary_factor": 0.5, "n_group": 8, "topk_group": 4,
            "num_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "use_qk_norm": True,
            "moe_router_enable_expert_bias": True,
        },
    },
    config=ROUTED_CONFIG
    | {
        "expert_count": "num_experts",
        "expert_shared_count": "num_shared_experts",
        "expert_shared_feed_forward_length": _shared_width,
        "expert_gating_func": lambda config: SIGMOID,
        "expert_weights_norm": lambda config: bool(config.get("norm_topk_prob", True)),
        "rope.dimension_count": part_of_heads,
    },
    tensors={
        "token_embd.weight": "model.word_embeddings.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "blk.{layer}.attn_norm.weight": f"{LAYER}.input_layernorm.weight",
        "blk.{layer}.attn_qkv.weight": f"{LAYER}.attention.query_key_value.weight",
        "blk.{layer}.attn_output.weight": f"{LAYER}.attention.dense.weight",
        "blk.{layer}.exp_probs_b.bias": f"{LAYER}.mlp.gate.expert_bias",
    }
    | HEAD_NORMS
    | FFN_NORM
    | FFN
    | EXPERTS
    | SHARED_EXPERTS,
    only=ONLY
    | {
        "hidden_act": "silu", "score_function": "sigmoid", "use_bias": False, "use_qkv_bias": False, "use_rmsnorm": True,
        "norm_softmax": False, "using_split_qkv_in_self_attention": False,
    },
    switched={
        **dict.fromkeys(HEAD_NORMS, "use_qk_norm"),
        "blk.{layer}.exp_probs_b.bias": "moe_router_enable_expert_bias",
    },
    further_layers=True,
)  # fmt: skip

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
