"""MiniMax-M2, 2.1 and 2.5: routed experts in all layers (routed.py); queries, and keys, are normalised over all heads together."""

from functools import partial

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace
from numatp.files.layouts import Config
from numatp.models.names import ATTENTION, CONFIG, ENDS, ONLY, part_of_heads
from numatp.models.routed import (
    FFN_NORM,
    HEAD_NORMS,
    Style,
    gate_of,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style(norm_of_all=True, normalized=True)


def _rotated(config: Config) -> int:
    """Released folders say it in `rotary_dim`."""
    if config.get("rotary_dim") is not None and "partial_rotary_factor" not in rope_parameters(config):
        return int(config["rotary_dim"])
    return part_of_heads(config)


EXPERT = "model.layers.{layer}.block_sparse_moe"
HUGGING_FACE = HuggingFace(
    classes={"MiniMaxM2ForCausalLM": {"rms_norm_eps": 1e-6, "rope_theta": 5000000.0}},
    config=CONFIG
    | {
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "expert_gating_func": gate_of,
        "rope.dimension_count": _rotated,
    },
    tensors=ENDS
    | ATTENTION
    | HEAD_NORMS
    | FFN_NORM
    | {
        "blk.{layer}.ffn_gate_inp.weight": f"{EXPERT}.gate.weight",
        "blk.{layer}.exp_probs_b.bias": f"{EXPERT}.e_score_correction_bias",
        "blk.{layer}.ffn_gate_exps.weight": f"{EXPERT}.experts.{{expert}}.w1.weight",
        "blk.{layer}.ffn_up_exps.weight": f"{EXPERT}.experts.{{expert}}.w3.weight",
        "blk.{layer}.ffn_down_exps.weight": f"{EXPERT}.experts.{{expert}}.w2.weight",
    },
    only=ONLY | {"hidden_act": "silu", "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer"},
)

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
