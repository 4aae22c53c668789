"""What Qwen3-Next and Qwen3.5 have in common: of every few layers one has attention whose result is gated, the others a gated delta
rule, which keeps a state of fixed size instead of keys and values; behind both a feed-forward network, or experts and one that all
rows go through. GGUF has 1 added to the norms' weights, and -exp(A_log) as ssm_a.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.huggingface import Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.kernels.states import MOST_LINEAR_HEAD, state_bytes
from numatp.models.layers import Attention, Recurrent
from numatp.models.names import (
    ATTENTION,
    CONFIG,
    ENDS,
    FFN,
    MIXTURE,
    ONLY,
    SHARED_EXPERT,
    Keys,
    layer_types,
    part_of_heads,
    plus_one,
)
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_ffn,
    read_pattern,
    read_shared_expert,
    read_sizes,
)
from numatp.program.values import Heads, LayerCache, LayerState, LinearHeads, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Cut, Sizes, Split, cut_heads

if TYPE_CHECKING:
    from numatp.program.ops import Ops

L2_EPSILON = 1e-6  # of the lengths that queries and keys of linear attention are divided by, whatever the norms have


def _inner_size(config: Config) -> int:
    return int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"])


# Of folders; "rms_norm_eps" and "partial_rotary_factor" are what transformers takes where they are not said.
DEFAULTS: Config = {"rms_norm_eps": 1e-6, "partial_rotary_factor": 0.25}
HYBRID_CONFIG: Keys = (
    CONFIG
    | MIXTURE
    | {
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.inner_size": _inner_size,
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "attention.recurrent_layers": layer_types("linear_attention", "full_attention_interval"),
        "rope.dimension_count": part_of_heads,
    }
)
HYBRID_ONLY: Config = ONLY | {"hidden_act": "silu", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
# All but the matrices of linear attention that are stored in other orders, and the experts.
HYBRID_TENSORS: dict[str, str | Stored] = (
    ENDS
    | ATTENTION
    | FFN
    | SHARED_EXPERT
    | {"output_norm.weight": plus_one("model.norm.weight")}
    | {
        f"blk.{{layer}}.{ours}.weight": plus_one(f"model.layers.{{layer}}.{theirs}.weight")
        for ours, theirs in (
            ("attn_norm", "input_layernorm"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("post_attention_norm", "post_attention_layernorm"),
        )
    }
)


def negative_exp(logarithms: np.ndarray) -> np.ndarray:
    """ssm_a of A_log."""
    return -np.exp(logarithms)


@dataclass(frozen=True, kw_only=True)
class HybridSpec(Spec):
    normalize: bool  # whether the experts' shares are made to add up to 1
    tiled: bool  # how value heads that share a key head lie, see LinearHeads


def read_hybrid(file: ModelFile, tiled: bool) -> HybridSpec:
    name = file.text("general.architecture")

    def count(key: str) -> int:
        return file.count(f"{name}.{key}")

    key_heads, value_heads = count("ssm.group_count"), count("ssm.time_step_rank")
    linear_head_size = count("ssm.state_size")
    if value_heads % key_heads or linear_head_size % 16:
        file.fail(f"claims {key_heads} key and {value_heads} value heads of {linear_head_size}; convert the model again")
    if count("ssm.inner_size") != value_heads * linear_head_size:
        file.fail("has key and value heads of different sizes in linear attention, which numatp cannot compute yet")
    if linear_head_size > MOST_LINEAR_HEAD:
        file.fail(f"has heads of {linear_head_size} in linear attention; numatp computes up to {MOST_LINEAR_HEAD}")
    conv_width, mixed = count("ssm.conv_kernel"), file.integer(f"{name}.expert_count", default=0) > 0
    if conv_width < 2:
        file.fail(f"claims a convolution over {conv_width}; convert the model again")
    sizes = read_sizes(
        file, **linear_sizes(key_heads, value_heads, linear_head_size, tiled), conv_width=conv_width,
        **(read_experts(file) | read_shared_expert(file) if mixed else read_ffn(file)),
    )  # fmt: skip
    attention, recurrent = Attention(sizes.head_size, sizes.head_size), Recurrent(partial(_state_bytes, sizes))
    period = file.integer(f"{name}.full_attention_interval", default=4)
    return read_common(
        file, HybridSpec, sizes=sizes, tiled=tiled,
        layers=tuple(recurrent if linear else attention for linear in read_pattern(file, "attention.recurrent_layers", period)),
        experts_used=count("expert_used_count") if mixed else 0,
        normalize=file.flag(f"{name}.expert_weights_norm", default=True),
    )  # fmt: skip


def linear_sizes(key_heads: int, value_heads: int, head_size: int, tiled: bool) -> dict[str, int | Cut]:
    """Of linear attention: queries have as many heads as keys; a key head is cut with its value heads. tiled: see LinearHeads."""
    group = value_heads // max(key_heads, 1)
    cut = cut_heads(key_heads, head_size if tiled else group * head_size)
    return {"linear_key_heads": cut, "linear_values": value_heads, "linear_group": group, "linear_head_size": head_size}


def _state_bytes(sizes: Sizes, split: Split) -> int:
    key_heads = len(split.linear_key_heads)
    return state_bytes(key_heads, key_heads * sizes.linear_group, sizes.linear_head_size, sizes.conv_width)


LINEAR_KEYS = "linear_key_heads*linear_head_size"
FULL = (
    Rule.matrix("attn_q.weight", "heads*2*head_size", "width", part=(0, 2)),  # a head's queries, then its gates
    *QKV_RULES[1:],
    Rule.matrix("attn_q.weight", "heads*2*head_size", "width", part=(1, 2)),
    *HEAD_NORM_RULES,
    ATTENTION_OUTPUT_RULE,
)
DENSE = (*GATE_UP_RULES, DOWN_RULE)
MIXTURE_RULES = (ROUTER_RULE, *SHARED_EXPERT_RULES, *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE)


def hybrid_rules(spec: HybridSpec, linear: Sequence[Rule]) -> list[Rule]:
    """linear: those of a layer of linear attention between its norms."""
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *(FULL if isinstance(spec.layers[layer], Attention) else linear),
            Rule.vector("post_attention_norm.weight", "width"),
            *(MIXTURE_RULES if spec.experts_used else DENSE),
        ),
    )


def hybrid_forward(
    p: "Ops", spec: HybridSpec, split: Split, weights: Weights, caches: Sequence[LayerCache | LayerState],
    gates: Sequence[str], gates_of: Callable[..., tuple[Value, Value]], outputs: Sequence[str],
) -> None:  # fmt: skip
    """gates: what the matrices are called that make linear attention's gates. gates_of(what each makes): beta and alpha as
    gated_delta takes them. outputs: what its output matrices are called; each takes an equal part of the value heads.
    """
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    linear_heads = LinearHeads(
        split.linear_key_heads, sizes.linear_key_heads, sizes.linear_group, sizes.linear_head_size, spec.tiled
    )
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)

    def attention(blk: str, h: Value, cache: LayerCache) -> Value:
        of_heads = [matrix(f"{blk}.attn_{name}") for name in ("q.weight[0]", "k.weight", "v.weight")]
        qkv, gate = p.matmuls(h, of_heads, [matrix(f"{blk}.attn_q.weight[1]")])
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        return p.sigmoid_gate(p.attention(qkv, heads, 1 / sqrt(heads.size), cache), gate)

    def linear_attention(blk: str, h: Value, state: LayerState) -> Value:
        names = ("attn_qkv.weight", "attn_gate.weight", *gates)
        qkv, gate, *made = p.matmuls(h, *([matrix(f"{blk}.{name}")] for name in names))
        beta, alpha = gates_of(*made)
        qkv = p.causal_conv(qkv, sizes.conv_width, state, vector(f"{blk}.ssm_conv1d.weight"))
        decay, bias = vector(f"{blk}.ssm_a"), vector(f"{blk}.ssm_dt.bias")
        h = p.gated_delta(qkv, beta, alpha, decay, bias, linear_heads, sizes.conv_width, L2_EPSILON, state)
        return p.gated_rms_norm(h, gate, vector(f"{blk}.ssm_norm.weight"), epsilon)

    def feed_forward(blk: str, x: Value, h: Value) -> Value:
        h = p.silu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        return p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))

    def mixture(blk: str, x: Value, h: Value) -> Value:
        routes = p.route(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, spec.normalize)
        experts, shared_expert = (
            [matrix(f"{blk}.ffn_{name}_{kind}.weight") for name in ("gate", "up")] for kind in ("exps", "shexp")
        )
        made, shared = p.expert_and_shared_matmul(h, routes, experts, shared_expert)
        shared = p.dot_gate(p.silu_gate(shared), h, vector(f"{blk}.ffn_gate_inp_shexp.weight"))
        down, shared_down = matrix(f"{blk}.ffn_down_exps.weight"), matrix(f"{blk}.ffn_down_shexp.weight")
        return p.add_experts(x, p.silu_gate(made), routes, down, (shared, shared_down))

    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon)
        if isinstance(cache, LayerCache):
            x = p.add_product(x, attention(blk, h, cache), matrix(f"{blk}.attn_output.weight"))
        else:
            h = linear_attention(blk, h, cache)
            width = h.width // len(outputs)
            parts = [h.columns(i * width, width) for i in range(len(outputs))] if len(outputs) > 1 else [h]
            x = p.add_products(x, *zip(parts, (matrix(f"{blk}.{name}") for name in outputs), strict=True))
        h = p.rms_norm(x, vector(f"{blk}.post_attention_norm.weight"), epsilon)
        x = mixture(blk, x, h) if spec.experts_used else feed_forward(blk, x, h)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
