"""Ling 3 (tiny, flash): Kimi Delta Attention (kimi_delta.py), whose decays have a least value, and in every few layers latent
attention, each head of which has a gate.
"""

from typing import Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.kimi_delta import DeltaSpec, delta_forward, delta_rules, delta_tensors, either, read_delta
from numatp.models.latent import LATENT_CONFIG, LATENT_TENSORS
from numatp.models.layers import Attention
from numatp.models.names import ONLY, Keys, layer_types
from numatp.models.routed import SIGMOID, Style, dense_layers_first

STYLE = Style(bias_may_lack=True)


# ---------------------------------------------------------------- folders


def _full(config: Config) -> list[bool]:
    """Whether a layer has latent attention: by layer_types, or the last of each group and those that are no whole group."""
    linear = layer_types("linear_attention")(config)
    if linear is not None:
        return [not flag for flag in linear]
    layers, group = config["num_hidden_layers"], config["layer_group_size"]
    return [(layer + 1) % group == 0 or layer >= layers // group * group for layer in range(layers)]


def _trained(config: Config) -> Any:
    """Before YaRN, which transformers would take from elsewhere where it is not said."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "yarn" and "original_max_position_embeddings" not in rope:
        raise CannotComputeError("scales the rotation by YaRN without 'original_max_position_embeddings'")
    return rope.get("original_max_position_embeddings") if rope["rope_type"] == "yarn" else None


def _shared_width(config: Config) -> Any:
    count = either("num_shared_experts", "n_shared_experts")(config)
    return config.get("moe_shared_expert_intermediate_size") or count * config["moe_intermediate_size"]


def _clamps(key: str) -> Any:
    """Of layers whose gates are limited, GGUF's list; without one, nothing."""

    def read(config: Config) -> None:
        if any(config.get(key) or ()):
            raise CannotComputeError(f"limits what opens and closes experts ({key!r})")

    return read


CONFIG: Keys = LATENT_CONFIG | {
    "context_length": either("model_max_length", "max_position_embeddings"),
    "attention.head_count_kv": lambda config: [int(flag) for flag in _full(config)],
    "attention.value_length": either("linear_head_dim", "head_dim"),  # which means nothing
    "rope.scaling.original_context_length": _trained,
    "kda.head_dim": either("linear_head_dim", "head_dim"),
    "kda.safe_gate": "kda_safe_gate",
    "kda.gate_lower_bound": "kda_lower_bound",
    "ssm.conv_kernel": "short_conv_kernel_size",
    "expert_count": either("num_experts", "num_local_experts"),
    "expert_used_count": either("num_experts_per_token", "num_experts_per_tok"),
    "expert_shared_count": either("num_shared_experts", "n_shared_experts"),
    "expert_shared_feed_forward_length": _shared_width,
    "expert_group_count": either("num_expert_group", "n_group"),
    "expert_gating_func": lambda config: SIGMOID,
    "expert_weights_norm": lambda config: bool(either("moe_renormalize", "norm_topk_prob")(config)),
    "leading_dense_block_count": dense_layers_first,
    "swiglu_clamp_exp": _clamps("expert_swiglu_limit_list"),
    "swiglu_clamp_shexp": _clamps("share_expert_swiglu_limit_list"),
}
PLACE = "model.layers.{layer}.attention"


def _named(stored: str | Stored) -> str | Stored:
    """As these folders call attention."""
    if isinstance(stored, Stored):
        return Stored(stored.name.replace("self_attn", "attention"), order=stored.order, turned=stored.turned)
    return stored.replace("self_attn", "attention")


TENSORS: dict[str, str | Stored] = (
    {ours: _named(theirs) for ours, theirs in LATENT_TENSORS.items()}
    | delta_tensors(PLACE)
    | {
        "token_embd.weight": "model.word_embeddings.weight",
        "blk.{layer}.attn_output.weight": f"{PLACE}.dense.weight",
        "blk.{layer}.attn_gate.weight": f"{PLACE}.g_proj.weight",
        "blk.{layer}.ssm_f_a.weight": f"{PLACE}.f_proj.weight",
        "blk.{layer}.ssm_g_a.weight": f"{PLACE}.g_proj.weight",
        "blk.{layer}.ssm_a": Stored(f"{PLACE}.A_log", values=np.exp),
        "blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.gate.expert_bias",
    }
)
DEFAULTS: Config = {
    "rms_norm_eps": 1e-6, "first_k_dense_replace": 2, "n_group": 8, "topk_group": 4, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "layer_group_size": 6, "kda_safe_gate": True, "kda_lower_bound": -5.0,
    "short_conv_kernel_size": 4, "head_dim": 128, "rope_theta": 6000000.0,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"BailingMoeV3ForCausalLM": DEFAULTS, "BailingHybridForCausalLM": DEFAULTS},
    config=CONFIG,
    tensors=TENSORS,
    only=ONLY
    | {
        "hidden_act": "silu", "attention_bias": False, "use_bias": False, "use_qkv_bias": False, "score_function": "sigmoid",
        "kda_safe_gate": True, "no_kda_lora": True, "gated_attention_proj_granularity_type": "head_wise",
    },
    further_layers=True,
)  # fmt: skip


def read_spec(file: ModelFile) -> DeltaSpec:
    bound = file.number("bailingmoe3.kda.gate_lower_bound")
    if bound >= 0 or not file.flag("bailingmoe3.kda.safe_gate", default=True):
        file.fail(f"has decays without a least value, or one of {bound:g}, which numatp does not compute; use another model")
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        if any(file.numbers(f"bailingmoe3.{key}", default=())):
            file.fail(f"limits what opens and closes experts ('{key}'), which numatp cannot compute; use another model")
    spec = read_delta(file, DeltaSpec, STYLE, low_rank=False, bound=bound, gated=True)
    for layer, kind in enumerate(spec.layers):  # folders call both gates g_proj
        gates = [f"blk.{layer}.{name}.weight" for name in ("ssm_g_a", "attn_gate")]
        if all(gate in file.tensors for gate in gates):
            del file.tensors[gates[0] if isinstance(kind, Attention) else gates[1]]
    return spec


rules, forward = delta_rules, delta_forward
