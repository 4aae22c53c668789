"""GLM-4.5, 4.6, 4.7 and their Air models: routed experts (routed.py); half of each head turns; the large ones normalise heads."""

from functools import partial

from numatp.files.huggingface import HuggingFace
from numatp.models.names import ATTENTION, ENDS, EXPERTS, FFN, ONLY, QKV_BIAS, part_of_heads
from numatp.models.routed import (
    FFN_NORM,
    HEAD_NORMS,
    ROUTED_CONFIG,
    SHARED_EXPERTS,
    SIGMOID,
    Style,
    gate_of,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style(ffn_norm="post_attention_norm.weight")
DEFAULTS = {
    "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "first_k_dense_replace": 1, "norm_topk_prob": True, "n_shared_experts": 1,
    "attention_bias": False, "use_qk_norm": False, "n_group": 1, "topk_group": 1,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"Glm4MoeForCausalLM": DEFAULTS},
    config=ROUTED_CONFIG | {"rope.dimension_count": part_of_heads, "expert_gating_func": lambda config: gate_of(config) or SIGMOID},
    tensors=ENDS
    | ATTENTION
    | QKV_BIAS
    | HEAD_NORMS
    | FFN
    | EXPERTS
    | SHARED_EXPERTS
    | {
        "blk.{layer}.post_attention_norm.weight": FFN_NORM["blk.{layer}.ffn_norm.weight"],
        "blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    },
    only=ONLY | {"hidden_act": "silu"},
    further_layers=True,
    switched={
        **dict.fromkeys(QKV_BIAS, "attention_bias"),
        **dict.fromkeys(HEAD_NORMS, "use_qk_norm"),
    },
)

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
