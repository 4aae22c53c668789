"""Command A+ and its smaller kin: Command-A's blocks (cohere2.py), in which most layers have experts. What the experts and the
shared ones give is averaged. Layers without experts come first, and know positions even where they see all tokens.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, EITHER, ENDS, EXPERTS, FFN, ONLY, layer_types
from numatp.models.routed import (
    SHARED_EXPERTS,
    SIGMOID,
    SOFTMAX,
    MixtureSpec,
    Style,
    dense_layers_listed,
    feed_forward_sizes,
    read_mixture,
)
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    QKV_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    decoder_rules,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.matrix import Matrix
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

STYLE = Style(bias_may_lack=True)
RMS = "layer_norm_rms_epsilon"  # files that have it subtract no mean
GATES = {"sigmoid": SIGMOID, "softmax": SOFTMAX}


def _dense_layers(config: Config) -> int:
    return dense_layers_listed(config) if config.get("mlp_layer_types") else int(config.get("first_k_dense_replace") or 0)


def _slides(config: Config) -> list[bool]:
    first, prefix = int(config.get("first_k_dense_replace") or 0), config["prefix_dense_sliding_window_pattern"]
    flags = layer_types("sliding_attention")(config)
    if flags is None:
        behind = range(1, config["num_hidden_layers"] - first + 1)
        flags = [i % prefix != 0 for i in range(1, first + 1)] + [i % config["sliding_window_pattern"] != 0 for i in behind]
    if prefix != 1 and not all(flags[: _dense_layers(config)]):
        raise CannotComputeError("has layers without experts that know no positions ('prefix_dense_sliding_window_pattern')")
    return list(flags)


def _gate(config: Config) -> int:
    if config["expert_selection_fn"] not in GATES:
        raise CannotComputeError(f"routes by {config['expert_selection_fn']!r} ('expert_selection_fn')")
    return GATES[config["expert_selection_fn"]]


def _shared_width(config: Config) -> Any:
    if config["num_shared_experts"] and config["shared_expert_combination_strategy"] != "average":
        raise CannotComputeError("adds up experts and shared ones ('shared_expert_combination_strategy')")
    return config["num_shared_experts"] * config["intermediate_size"] or None


HUGGING_FACE = HuggingFace(
    classes={
        "Cohere2MoeForCausalLM": {
            "head_dim": 128, "logit_scale": 0.0625, "layer_norm_eps": 1e-5, "sliding_window": 4096, "num_experts": 8,
            "num_experts_per_tok": 2, "num_shared_experts": 0, "shared_expert_combination_strategy": "average",
            "expert_selection_fn": "softmax", "norm_topk_prob": True, "prefix_dense_sliding_window_pattern": 1,
            "sliding_window_pattern": 4,
        },
    },
    config=CONFIG
    | {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": _slides,
        "logit_scale": "logit_scale",
        "feed_forward_length": lambda config: config.get("prefix_dense_intermediate_size") or config["intermediate_size"],
        "leading_dense_block_count": _dense_layers,
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "expert_shared_count": lambda config: config["num_shared_experts"] or None,
        "expert_shared_feed_forward_length": _shared_width,
        "expert_gating_func": _gate,
        # The softmax is that of the chosen scores alone.
        "expert_weights_norm": lambda config: _gate(config) == SOFTMAX or bool(config["norm_topk_prob"]),
    },
    tensors=ENDS | ATTENTION | FFN | EXPERTS | EITHER | SHARED_EXPERTS,
    only=ONLY | {"hidden_act": "silu", "attention_bias": False, "rope_scaling": None},  # which transformers does not read here
    tied=True,
    further_layers=True,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cohere2MoeSpec(MixtureSpec):
    logit_scale: float
    subtracts_mean: bool  # whether the norms do


def read_spec(file: ModelFile) -> Cohere2MoeSpec:
    sizes = read_sizes(file, **feed_forward_sizes(file, STYLE))
    subtracts_mean = not file.number(f"cohere2moe.attention.{RMS}", default=0.0)
    return read_mixture(
        file, Cohere2MoeSpec, STYLE, sizes, norm="layer_norm_epsilon" if subtracts_mean else RMS,
        layers=read_windows(file, sizes, period=4),  # of four layers the last sees all tokens
        layer_exchanges=1, logit_scale=file.number("cohere2moe.logit_scale"), subtracts_mean=subtracts_mean,
    )  # fmt: skip


def rules(spec: Cohere2MoeSpec) -> list[Rule]:
    shared = SHARED_EXPERT_RULES[1:] if "shared_ffn" in spec.sizes else ()

    def layer_rules(layer: int) -> list[Rule]:
        before: tuple[Rule, ...] = (Rule.vector("attn_norm.weight", "width"), *QKV_RULES)
        if layer < spec.dense_layers:
            return [*before, *GATE_UP_RULES, ATTENTION_OUTPUT_RULE, DOWN_RULE]
        return [*before, ATTENTION_OUTPUT_RULE, ROUTER_RULE, *shared, *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE]

    return decoder_rules(spec, layer_rules)


def forward(p: "Ops", spec: Cohere2MoeSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    norm = p.layer_norm if spec.subtracts_mean else p.rms_norm

    def gate_up(blk: str, kind: str = "") -> list[Matrix]:
        return [matrix(f"{blk}.ffn_{name}{kind}.weight") for name in ("gate", "up")]

    def attention(blk: str, h: Value, cache: LayerCache, rotated: bool) -> Value:
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles if rotated else None, cache, neighbours=True)
        return p.attention(qkv, heads, 1 / sqrt(heads.size), cache)

    def add_mixture(blk: str, x: Value, h: Value, attended: Value) -> Value:
        routes = p.route_wanted(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.router, None)
        shared = []
        if "shared_ffn" in sizes:
            made, beside = p.expert_and_shared_matmul(h, routes, gate_up(blk, "_exps"), gate_up(blk, "_shexp"))
            shared = [(p.silu_gate(beside), matrix(f"{blk}.ffn_down_shexp.weight"))]
        else:
            made = p.expert_matmul(h, routes, *gate_up(blk, "_exps"))
        return p.add_experts(
            x, p.silu_gate(made), routes, matrix(f"{blk}.ffn_down_exps.weight"), *shared, factor=0.5 if shared else 1.0,
            beside=(attended, matrix(f"{blk}.attn_output.weight")),
        )  # fmt: skip

    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk, dense = f"blk.{layer}", layer < spec.dense_layers
        h = norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        attended = attention(blk, h, cache, rotated=dense or not cache.sees_all)
        if dense:
            output = attended, matrix(f"{blk}.attn_output.weight")
            made = p.silu_gate(p.matmul(h, *gate_up(blk)))
            x = p.add_products(x, (made, matrix(f"{blk}.ffn_down.weight")), output)
        else:
            x = add_mixture(blk, x, h, attended)
    # Scaling the normalised rows scales the logits.
    x = norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True, scale=spec.logit_scale)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
