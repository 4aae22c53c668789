"""What GLM-4.5, MiniMax-M2, dots.llm1, ERNIE 4.5, Hunyuan 3 and Ling 2 have in common: grouped-query attention, a few dense layers
first, and experts whose router has a bias per expert, which chooses but does not weigh; most have experts that all rows go through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, TypeVar

from numatp.files.huggingface import CannotComputeError
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, Keys
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_BIAS_RULES,
    QKV_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_ffn,
    read_sizes,
)
from numatp.program.values import Heads, Kept, LayerCache, Router, Value
from numatp.weights.load import Weights
from numatp.weights.matrix import Matrix
from numatp.weights.rules import Rule
from numatp.weights.splits import COLUMN_UNIT, Cut, Sizes, Split, cut_columns

if TYPE_CHECKING:
    from numatp.program.ops import Ops

SOFTMAX, SIGMOID = 1, 2  # values of expert_gating_func
NORM_OF_ALL_RULES = (Rule.vector("attn_q_norm.weight", "heads*head_size"), Rule.vector("attn_k_norm.weight", "kv_heads*head_size"))


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is different from one of these architectures to another, and no metadata says."""

    ffn_norm: str = "ffn_norm.weight"
    bias: str = "exp_probs_b.bias"  # of the router
    bias_may_lack: bool = False
    gate: int = SIGMOID  # where a file is silent
    routers_tell: bool = False  # whether the layers without experts are those without a router, where a file is silent
    neighbours: bool = False  # whether the two values of a head that turn together lie side by side
    normalized: bool = False  # whether shares always add up to 1, else where a file says so
    norm_of_all: bool = False  # whether all heads' queries, and keys, are normalised together instead of each head


@dataclass(frozen=True, kw_only=True)
class MixtureSpec(Spec):
    style: Style
    router: Router
    biased: bool  # the router
    dense_layers: int  # which have a feed-forward network; the others have experts
    attended_scale: float = 1.0  # of what attention adds


@dataclass(frozen=True, kw_only=True)
class RoutedSpec(MixtureSpec):
    qkv_bias: bool
    heads_normalized: bool


MixtureKind = TypeVar("MixtureKind", bound=MixtureSpec)
CacheKind = TypeVar("CacheKind", bound=Kept)


def read_routed(file: ModelFile, style: Style) -> RoutedSpec:
    return read_mixture(
        file, RoutedSpec, style, read_sizes(file, **feed_forward_sizes(file, style)), layer_exchanges=3 if style.norm_of_all else 2,
        qkv_bias=any(f"blk.0.attn_{part}.bias" in file.tensors for part in ("q", "k", "v", "qkv")),
        heads_normalized="blk.0.attn_q_norm.weight" in file.tensors,
    )  # fmt: skip


def read_mixture(file: ModelFile, kind: type[MixtureKind], style: Style, sizes: Sizes, **more: Any) -> MixtureKind:
    """What the metadata says of all of these; `more`: see read_common."""
    name = file.text("general.architecture")
    step = file.integer(f"{name}.interleave_moe_layer_step", default=1)
    if step != 1:
        file.fail(f"has experts in each {step}-th layer, which numatp cannot compute; use another model")
    return read_common(
        file, kind, style=style, sizes=sizes, dense_layers=_dense_layers(file, style), router=read_router(file, style),
        biased=not style.bias_may_lack or any(tensor.endswith(f".{style.bias}") for tensor in file.tensors),
        experts_used=file.count(f"{name}.expert_used_count"), **more,
    )  # fmt: skip


def feed_forward_sizes(file: ModelFile, style: Style) -> dict[str, int | Cut]:
    """Of experts, shared ones, and the layers that have none."""
    return {**read_experts(file), **_read_shared(file), **(read_ffn(file) if _dense_layers(file, style) else {})}


def _dense_layers(file: ModelFile, style: Style) -> int:
    name = file.text("general.architecture")
    layers, dense = file.count(f"{name}.block_count", most=max(len(file.tensors), 1)), 0
    if style.routers_tell:
        with_experts = [layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in file.tensors]
        dense = min(with_experts, default=layers)
    dense = file.integer(f"{name}.leading_dense_block_count", default=dense)
    if not 0 <= dense <= layers:
        file.fail(f"claims that the first {dense} of its {layers} layers have no experts; convert the model again")
    return dense


def _read_shared(file: ModelFile) -> dict[str, Cut]:
    """The size of the experts that all rows go through, side by side; without any it is no size."""
    name = file.text("general.architecture")
    count = file.integer(f"{name}.expert_shared_count", default=0)
    width = count * file.count_of_layers(f"{name}.expert_feed_forward_length")
    width = file.integer(f"{name}.expert_shared_feed_forward_length", default=width)
    if width < 0 or width % COLUMN_UNIT:
        file.fail(f"claims shared experts of {width}, no multiple of {COLUMN_UNIT}; convert the model again")
    return {"shared_ffn": cut_columns(width)} if width else {}


def read_router(file: ModelFile, style: Style) -> Router:
    name = file.text("general.architecture")
    gate = file.integer(f"{name}.expert_gating_func", default=style.gate)
    if gate not in (SOFTMAX, SIGMOID):
        file.fail(f"routes by function {gate} ('{name}.expert_gating_func'), which numatp cannot compute; use another model")
    factor = file.number(f"{name}.expert_weights_scale", default=1.0)
    experts, groups = file.count(f"{name}.expert_count"), file.integer(f"{name}.expert_group_count", default=1)
    used, groups_used = file.count(f"{name}.expert_used_count"), file.integer(f"{name}.expert_group_used_count", default=groups)
    if not 1 <= groups_used <= groups or experts % groups or used > experts // groups * groups_used:
        file.fail(f"claims {used} experts of {groups_used} of {groups} groups of {experts} experts; convert the model again")
    return Router(
        used=used, function="sigmoid" if gate == SIGMOID else "softmax",
        normalize=style.normalized or file.flag(f"{name}.expert_weights_norm", default=False),
        factor=factor or 1.0, groups=groups, groups_used=groups_used, pairs=gate == SIGMOID,  # as in DeepSeek-V3, and not in V2
    )  # fmt: skip


def routed_rules(spec: RoutedSpec) -> list[Rule]:
    norms = NORM_OF_ALL_RULES if spec.style.norm_of_all else HEAD_NORM_RULES if spec.heads_normalized else ()
    attention = (*QKV_RULES, *(QKV_BIAS_RULES if spec.qkv_bias else ()), *norms, ATTENTION_OUTPUT_RULE)
    return mixture_rules(spec, lambda layer: attention)


def mixture_rules(spec: MixtureSpec, attention: Callable[[int], Sequence[Rule]]) -> list[Rule]:
    """attention(layer): the rules between its norms, the last of them "attn_output.weight"."""
    dense = (*GATE_UP_RULES, DOWN_RULE)
    bias = (Rule.vector(spec.style.bias, "experts"),) if spec.biased else ()
    shared = SHARED_EXPERT_RULES[1:] if "shared_ffn" in spec.sizes else ()
    mixture = (ROUTER_RULE, *bias, *shared, *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE)
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *attention(layer),
            Rule.vector(spec.style.ffn_norm, "width"),
            *(dense if layer < spec.dense_layers else mixture),
        ),
    )


def routed_forward(p: "Ops", spec: RoutedSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, style = spec.sizes, spec.style
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)

    def attention(blk: str, h: Value, cache: LayerCache) -> Value:
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        if spec.qkv_bias:
            qkv = p.add_bias(qkv, *(vector(f"{blk}.attn_{name}.bias") for name in "qkv"))
        if style.norm_of_all or spec.heads_normalized:
            q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
            if style.norm_of_all:
                qkv = p.rms_norm_all_heads(qkv, heads, sizes.heads, q_norm, k_norm, spec.epsilon)
            else:
                qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, spec.epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=style.neighbours)
        return p.attention(qkv, heads, 1 / sqrt(heads.size), cache)

    mixture_forward(p, spec, split, weights, caches, attention)


def mixture_forward(
    p: "Ops", spec: MixtureSpec, split: Split, weights: Weights, caches: Sequence[CacheKind],
    attention: Callable[[str, Value, CacheKind], Value],
) -> None:  # fmt: skip
    """attention(block, h, cache): of normalised rows, before the output matrix."""
    matrix, vector = weights.matrix, weights.vector

    def gate_up(blk: str, kind: str = "") -> list[Matrix]:
        return [matrix(f"{blk}.ffn_{name}{kind}.weight") for name in ("gate", "up")]

    def mixture(blk: str, x: Value, h: Value) -> Value:
        bias = vector(f"{blk}.{spec.style.bias}") if spec.biased else None
        routes = p.route_wanted(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.router, bias)
        experts, down = gate_up(blk, "_exps"), matrix(f"{blk}.ffn_down_exps.weight")
        if "shared_ffn" not in spec.sizes:
            return p.add_experts(x, p.silu_gate(p.expert_matmul(h, routes, *experts)), routes, down)
        made, shared = p.expert_and_shared_matmul(h, routes, experts, gate_up(blk, "_shexp"))
        shared_down = matrix(f"{blk}.ffn_down_shexp.weight")
        return p.add_experts(x, p.silu_gate(made), routes, down, (p.silu_gate(shared), shared_down))

    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        x = p.add_product(x, attention(blk, h, cache), matrix(f"{blk}.attn_output.weight"), factor=spec.attended_scale)
        h = p.rms_norm(x, vector(f"{blk}.{spec.style.ffn_norm}"), spec.epsilon)
        if layer < spec.dense_layers:
            x = p.add_product(x, p.silu_gate(p.matmul(h, *gate_up(blk))), matrix(f"{blk}.ffn_down.weight"))
        else:
            x = mixture(blk, x, h)
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)


# ---------------------------------------------------------------- folders


def gate_of(config: Config) -> int | None:
    """Folders that say it mean the sigmoid, which transformers computes whatever they say."""
    name = config.get("scoring_func")
    if name not in (None, "sigmoid", "noaux_tc"):
        raise CannotComputeError(f"routes by {name!r} ('scoring_func')")
    return None if name is None else SIGMOID


def dense_layers_listed(config: Config) -> int:
    """By mlp_layer_types; where it is not there, the first layer."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return min(1, config["num_hidden_layers"])
    dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense) or len(kinds) != config["num_hidden_layers"]:
        raise CannotComputeError("has layers without experts behind those with them ('mlp_layer_types')")
    return int(dense)


def dense_layers_first(config: Config) -> int:
    """By mlp_layer_types, or as many of the first layers as first_k_dense_replace says."""
    if config.get("mlp_layer_types") is None:
        return min(int(config["first_k_dense_replace"]), int(config["num_hidden_layers"]))
    return dense_layers_listed(config)


ROUTED_CONFIG: Keys = CONFIG | {
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_gating_func": gate_of,
}
SHARED_EXPERTS = {
    f"blk.{{layer}}.ffn_{name}_shexp.weight": f"model.layers.{{layer}}.mlp.shared_experts.{name}_proj.weight"
    for name in ("gate", "up", "down")
}
FFN_NORM = {"blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight"}
HEAD_NORMS = {f"blk.{{layer}}.attn_{name}_norm.weight": f"model.layers.{{layer}}.self_attn.{name}_norm.weight" for name in "qk"}
