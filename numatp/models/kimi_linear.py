"""Kimi Linear: of every few layers one has latent attention (latent.py), whose keys do not turn; the others Kimi Delta Attention
(kernels/channels.py), which keeps a state of fixed size. Behind both experts, routed by sigmoids.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.kernels.states import MOST_LINEAR_HEAD, state_bytes
from numatp.models.hybrid import L2_EPSILON, negative_exp
from numatp.models.latent import (
    LATENT_CONFIG,
    LATENT_TENSORS,
    LAYER,
    LatentSpec,
    attention_rules,
    latent_attention,
    read_latent,
)
from numatp.models.layers import Attention, Layer, Recurrent
from numatp.models.names import ONLY, Keys, layer_types
from numatp.models.rope import Rope
from numatp.models.routed import SIGMOID, Style, dense_layers_first, mixture_forward, mixture_rules
from numatp.program.values import LayerCache, LayerState, LinearHeads, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Cut, Split, cut_heads

if TYPE_CHECKING:
    from numatp.program.ops import Ops

STYLE = Style(bias_may_lack=True, normalized=True)


# ---------------------------------------------------------------- folders


def _either(*keys: str) -> Callable[[Config], Any]:
    """What released folders and transformers call a key."""
    return lambda config: next((config[key] for key in keys if config.get(key) is not None), None)


def _linear(theirs: str, key: str) -> Callable[[Config], Any]:
    """Of linear attention: released folders have it in a table of its own."""

    def read(config: Config) -> Any:
        return (config.get("linear_attn_config") or {}).get(theirs, config[key])

    return read


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


def _heads(config: Config) -> int:
    """GGUF has one number for both kinds of attention."""
    heads, linear = config["num_attention_heads"], _linear("num_heads", "linear_num_heads")(config)
    if heads != linear:
        raise CannotComputeError(f"has {heads} heads, and {linear} in linear attention")
    return int(heads)


def _groups(config: Config) -> Any:
    """llama.cpp's converter writes no single group."""
    count = _either("num_expert_group", "n_group")(config)
    return None if count == 1 else count


CONFIG: Keys = LATENT_CONFIG | {
    "context_length": _either("model_max_length", "max_position_embeddings"),
    "attention.head_count": _heads,
    "attention.head_count_kv": lambda config: [int(flag) for flag in _full(config)],
    "attention.value_length": "head_dim",  # which means nothing
    "kda.head_dim": _linear("head_dim", "linear_head_dim"),
    "ssm.conv_kernel": _linear("short_conv_kernel_size", "linear_conv_kernel_dim"),
    "expert_count": _either("num_experts", "num_local_experts"),
    "expert_used_count": _either("num_experts_per_token", "num_experts_per_tok"),
    "expert_shared_count": _either("num_shared_experts", "n_shared_experts"),
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
    | {f"blk.{{layer}}.attn_{name}.weight": f"{LAYER}.{name}_proj.weight" for name in "kv"}
    | {f"blk.{{layer}}.ssm_conv1d_{name}.weight": f"{LAYER}.{name}_conv1d.weight" for name in "qkv"}
    | {f"blk.{{layer}}.ssm_{name}.weight": f"{LAYER}.{name}_proj.weight" for name in ("f_a", "f_b", "g_a", "g_b")}
    | {
        "blk.{layer}.ffn_gate_inp.weight": f"{MOE}.gate.weight",
        "blk.{layer}.exp_probs_b.bias": f"{MOE}.gate.e_score_correction_bias",
        "blk.{layer}.ssm_beta.weight": f"{LAYER}.b_proj.weight",
        "blk.{layer}.ssm_a": Stored(f"{LAYER}.A_log", values=lambda logarithms: negative_exp(logarithms).ravel()),
        "blk.{layer}.ssm_dt.bias": f"{LAYER}.dt_bias",
        "blk.{layer}.ssm_norm.weight": f"{LAYER}.o_norm.weight",
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


# ---------------------------------------------------------------- sizes and tensors


def read_spec(file: ModelFile) -> LatentSpec:
    size, conv_width = file.count("kimi-linear.kda.head_dim"), file.count("kimi-linear.ssm.conv_kernel")
    heads, counts = file.count_of_layers("kimi-linear.attention.head_count"), file.integers("kimi-linear.attention.head_count_kv")
    if size % 16 or size > MOST_LINEAR_HEAD or conv_width < 2:
        file.fail(
            f"has heads of {size} and a convolution over {conv_width} in linear attention; numatp computes multiples of 16 up to "
            f"{MOST_LINEAR_HEAD}, and convolutions from 2 on: use another model"
        )
    if len(counts) != file.count("kimi-linear.block_count"):
        file.fail(f"has {len(counts)} values of 'kimi-linear.attention.head_count_kv', not one for each layer; convert it again")
    recurrent = Recurrent(partial(_state_bytes, size, conv_width))

    def layer(number: int, rows: Attention) -> Layer:
        return rows if counts[number] else recurrent

    more: dict[str, int | Cut] = {
        "delta_heads": cut_heads(heads, size),
        "all_heads": heads,
        "delta_size": size,
        "conv_width": conv_width,
    }
    rotated = file.count("kimi-linear.rope.dimension_count")
    return read_latent(file, LatentSpec, layer, more, STYLE, rope=Rope(np.zeros(rotated // 2)))  # which turns nothing


def _state_bytes(size: int, conv_width: int, split: Split) -> int:
    heads = len(split.delta_heads)
    return state_bytes(heads, heads, size, conv_width, by_channel=True)


HEADS = "delta_heads*delta_size"
DELTA_RULES = (
    *(Rule.matrix(f"attn_{name}.weight", HEADS, "width") for name in "qkv"),
    # Small: every rank has the first halves of the low-rank products, and beta, of all heads.
    Rule.matrix("ssm_f_a.weight", "delta_size", "width"),
    Rule.matrix("ssm_g_a.weight", "delta_size", "width"),
    Rule.matrix("ssm_beta.weight", "all_heads", "width"),
    *(Rule.table(f"ssm_conv1d_{name}.weight", HEADS, "conv_width", by="columns") for name in "qkv"),
    Rule.matrix("ssm_f_b.weight", HEADS, "delta_size"),
    Rule.vector("ssm_a", "all_heads"),
    Rule.vector("ssm_dt.bias", HEADS),
    Rule.matrix("ssm_g_b.weight", HEADS, "delta_size"),
    Rule.vector("ssm_norm.weight", "delta_size"),
    Rule.matrix("attn_output.weight", "width", HEADS),
)


def rules(spec: LatentSpec) -> list[Rule]:
    latent = attention_rules(spec)
    return mixture_rules(spec, lambda layer: latent if isinstance(spec.layers[layer], Attention) else DELTA_RULES)


# ---------------------------------------------------------------- the forward pass


def forward(p: "Ops", spec: LatentSpec, split: Split, weights: Weights, caches: Sequence[LayerCache | LayerState]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    latent = latent_attention(p, spec, split, weights)
    heads = LinearHeads(split.delta_heads, sizes.all_heads, 1, sizes.delta_size, tiled=False, by_channel=True)

    def delta(blk: str, h: Value, state: LayerState) -> Value:
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        low = p.matmul(h, *(matrix(f"{blk}.ssm_{name}.weight") for name in ("f_a", "g_a", "beta")))
        alpha = p.matmul(low.columns(0, heads.size), matrix(f"{blk}.ssm_f_b.weight"))
        gate = p.matmul(low.columns(heads.size, heads.size), matrix(f"{blk}.ssm_g_b.weight"))
        beta = low.columns(2 * heads.size, sizes.all_heads)
        qkv = p.causal_conv(qkv, sizes.conv_width, state, *(vector(f"{blk}.ssm_conv1d_{name}.weight") for name in "qkv"))
        decay, bias = vector(f"{blk}.ssm_a"), vector(f"{blk}.ssm_dt.bias")
        h = p.gated_delta(qkv, beta, alpha, decay, bias, heads, sizes.conv_width, L2_EPSILON, state)
        return p.gated_rms_norm(h, gate, vector(f"{blk}.ssm_norm.weight"), spec.epsilon, by_sigmoid=True)

    def attention(blk: str, h: Value, cache: LayerCache | LayerState) -> Value:
        return latent(blk, h, cache) if isinstance(cache, LayerCache) else delta(blk, h, cache)

    mixture_forward(p, spec, split, weights, caches, attention)
