"""Hunyuan 3 (Hy3): routed experts (routed.py), norms of heads."""

from functools import partial

from numatp.files.huggingface import HuggingFace
from numatp.models.names import ATTENTION, CONFIG, ENDS, EXPERTS, FFN, ONLY
from numatp.models.routed import (
    FFN_NORM,
    HEAD_NORMS,
    SIGMOID,
    Style,
    dense_layers_listed,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style(bias="exp_probs_b", routers_tell=True)


MLP = "model.layers.{layer}.mlp"
DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 11158840.0, "num_shared_experts": 1, "router_scaling_factor": 2.826}
HUGGING_FACE = HuggingFace(
    classes={"HYV3ForCausalLM": DEFAULTS},
    config=CONFIG
    | {
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": lambda config: config["num_shared_experts"] * config["moe_intermediate_size"],
        "leading_dense_block_count": dense_layers_listed,
        "expert_weights_norm": lambda config: True,
        "expert_weights_scale": "router_scaling_factor",
        "expert_gating_func": lambda config: SIGMOID,
    },
    tensors=ENDS
    | ATTENTION
    | HEAD_NORMS
    | FFN
    | EXPERTS
    | FFN_NORM
    | {f"blk.{{layer}}.ffn_{name}_shexp.weight": f"{MLP}.shared_mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    | {"blk.{layer}.ffn_gate_inp.weight": f"{MLP}.router.gate.weight", "blk.{layer}.exp_probs_b": f"{MLP}.expert_bias"},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    further_layers=True,
)

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
