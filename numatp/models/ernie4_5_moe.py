"""ERNIE 4.5 with experts (21B-A3B, 300B-A47B): routed by softmax (routed.py); the values that turn together are neighbours."""

from functools import partial

from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.models.names import ATTENTION, CONFIG, ENDS, EXPERTS, FFN, ONLY
from numatp.models.routed import (
    FFN_NORM,
    SHARED_EXPERTS,
    SOFTMAX,
    Style,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style(gate=SOFTMAX, neighbours=True, normalized=True)


def _dense_layers(config: Config) -> int:
    last, layers = config.get("moe_layer_end_index", -1), config["num_hidden_layers"]
    if last not in (-1, layers - 1):
        raise CannotComputeError("has layers without experts behind those with them ('moe_layer_end_index')")
    return int(config["moe_layer_start_index"])


def _shared(config: Config) -> int | None:
    return int(config["moe_num_shared_experts"]) * int(config["moe_intermediate_size"]) or None


DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "moe_layer_start_index": 1, "moe_num_shared_experts": 2}
HUGGING_FACE = HuggingFace(
    classes={"Ernie4_5_MoeForCausalLM": DEFAULTS},
    config=CONFIG
    | {
        "expert_count": lambda config: config.get("num_experts", config.get("moe_num_experts")),
        "expert_used_count": lambda config: config.get("num_experts_per_tok", config.get("moe_k")),
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "moe_num_shared_experts",
        "expert_shared_feed_forward_length": _shared,
        "leading_dense_block_count": _dense_layers,
        "interleave_moe_layer_step": "moe_layer_interval",
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | EXPERTS
    | FFN_NORM
    | SHARED_EXPERTS
    | {"blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"},
    only=ONLY | {"hidden_act": "silu", "use_bias": False, "moe_layer_interval": 1, "moe_norm_min": 1e-12},
    further=("model.mtp_*",),
    tied=True,
)

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
