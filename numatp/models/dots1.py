"""dots.llm1: routed experts in groups (routed.py), norms of heads."""

from functools import partial

from numatp.files.huggingface import CannotComputeError, Each, HuggingFace
from numatp.files.layouts import Config
from numatp.models.names import ATTENTION, ENDS, EXPERTS, FFN, ONLY
from numatp.models.routed import (
    FFN_NORM,
    HEAD_NORMS,
    ROUTED_CONFIG,
    SHARED_EXPERTS,
    Style,
    read_routed,
    routed_forward,
    routed_rules,
)

STYLE = Style()


def _no_window(config: Config) -> None:
    """transformers gives the layers from max_window_layers on a window, where layer_types does not say."""
    slides = config.get("sliding_window") is not None and config.get("layer_types") is None
    if slides and config.get("max_window_layers", 62) < config["num_hidden_layers"]:
        raise CannotComputeError("has layers that see a window of tokens ('max_window_layers')")


DEFAULTS = {
    "rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "norm_topk_prob": False, "n_group": 1, "topk_group": 1,
    "sliding_window": 4096,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"Dots1ForCausalLM": DEFAULTS},
    config=ROUTED_CONFIG
    | {"attention.sliding_window": _no_window, "expert_weights_norm": lambda config: bool(config["norm_topk_prob"])},
    tensors=ENDS
    | ATTENTION
    | HEAD_NORMS
    | FFN
    | EXPERTS
    | FFN_NORM
    | SHARED_EXPERTS
    | {"blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias"},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False, "layer_types": Each("full_attention")},
)

read_spec = partial(read_routed, style=STYLE)
rules, forward = routed_rules, routed_forward
