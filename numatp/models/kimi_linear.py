"""Kimi Linear: Kimi Delta Attention (kimi_delta.py), and in every few layers latent attention, whose keys do not turn."""

from typing import Any

import numpy as np

from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.hybrid import negative_exp
from numatp.models.kimi_delta import (
    DeltaSpec,
    alike_heads,
    delta_forward,
    delta_rules,
    delta_tensors,
    either,
    linear_key,
    read_delta,
)
from numatp.models.latent import LATENT_CONFIG, LATENT_TENSORS, LAYER
from numatp.models.names import ONLY, Keys, layer_types
from numatp.models.rope import Rope
from numatp.models.routed import SIGMOID, Style, dense_layers_first

STYLE = Style(bias_may_lack=True, normalized=True)


# ---------------------------------------------------------------- folders


def _full(config: Config) -> list[bool]:
    """Whether a layer has latent attention: by layer_types, or by lists of layers that count from 1; where neither is there, the
    first of four does, but not the very first.
    """
    listed, layers = config.get("linear_attn_config") or {}, config["num_hidden_layers"]
    linear = layer_types("linear_attention")(config)
    if linear is not None:
        return [not flag for flag in linear]
    if "full_attn_layers" not in listed or "kda_layers" not in listed:
        return [layer > 0 and layer % 4 == 0 for layer in range(layers)]
    if sorted([*listed["full_attn_layers"], *listed["kda_layers"]]) != list(range(1, layers + 1)):
        raise CannotComputeError("does not say once of each layer which attention it has ('linear_attn_config')")
    return [layer + 1 in listed["full_attn_layers"] for layer in range(layers)]


def _groups(config: Config) -> Any:
    """llama.cpp's converter writes no single group."""
    count = either("num_expert_group", "n_group")(config)
    return None if count == 1 else count


CONFIG: Keys = LATENT_CONFIG | {
    "context_length": either("model_max_length", "max_position_embeddings"),
    "attention.head_count": alike_heads,
    "attention.head_count_kv": lambda config: [int(flag) for flag in _full(config)],
    "attention.value_length": "head_dim",  # which means nothing
    "kda.head_dim": linear_key("head_dim", "linear_head_dim"),
    "ssm.conv_kernel": linear_key("short_conv_kernel_size", "linear_conv_kernel_dim"),
    "expert_count": either("num_experts", "num_local_experts"),
    "expert_used_count": either("num_experts_per_token", "num_experts_per_tok"),
    "expert_shared_count": either("num_shared_experts", "n_shared_experts"),
    "expert_group_count": _groups,
    "expert_gating_func": lambda config: SIGMOID,
    "leading_dense_block_count": dense_layers_first,
}  # fmt: skip
UNSAID = {"expert_weights_norm", *(key for key in CONFIG if key.startswith("rope.") and key != "rope.dimension_count")}
CONFIG = {key: value for key, value in CONFIG.items() if key not in UNSAID}
MOE = "model.layers.{layer}.block_sparse_moe"
TENSORS: dict[str, str | Stored] = (
    LATENT_TENSORS
    | {
        f"blk.{{layer}}.ffn_{ours}_exps.weight": f"{MOE}.experts.{{expert}}.{theirs}.weight"
        for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    }
    | {f"blk.{{layer}}.ffn_{name}_shexp.weight": f"{MOE}.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")}
    | delta_tensors()
    | {f"blk.{{layer}}.ssm_{name}.weight": f"{LAYER}.{name}_proj.weight" for name in ("f_a", "f_b", "g_a", "g_b")}
    | {
        "blk.{layer}.ffn_gate_inp.weight": f"{MOE}.gate.weight",
        "blk.{layer}.exp_probs_b.bias": f"{MOE}.gate.e_score_correction_bias",
        "blk.{layer}.ssm_a": Stored(f"{LAYER}.A_log", values=lambda logarithms: negative_exp(logarithms).ravel()),
    }
)
HUGGING_FACE = HuggingFace(
    classes={
        "KimiLinearForCausalLM": {
            "rms_norm_eps": 1e-5, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
            "routed_scaling_factor": 2.446, "norm_topk_prob": True, "linear_head_dim": 128, "linear_num_heads": 32,
            "linear_conv_kernel_dim": 4,
        },
    },
    config=CONFIG,
    tensors=TENSORS,
    only=ONLY
    | {
        "hidden_act": "silu", "attention_bias": False, "mla_use_nope": True, "moe_layer_freq": 1, "moe_renormalize": True,
        "norm_topk_prob": True, "moe_router_activation_func": "sigmoid",
    },
    further_layers=True,
)  # fmt: skip


def read_spec(file: ModelFile) -> DeltaSpec:
    rotated = file.count("kimi-linear.rope.dimension_count")
    return read_delta(file, DeltaSpec, STYLE, low_rank=True, rope=Rope(np.zeros(rotated // 2)))  # which turns nothing


rules, forward = delta_rules, delta_forward
