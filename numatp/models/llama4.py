"""Llama 4 (text; Scout and Maverick): most layers see the tokens of their own chunk of the text; every few layers one sees all
tokens, knows no positions, and looks the more closely the further along it is. Some layers, or all, have experts, whose input is
weighed, and one more that all rows go through.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.layers import Attention
from numatp.models.llama import LLAMA3_CONFIG, rope_factors
from numatp.models.names import ATTENTION, ENDS, ONLY, TOGETHER, layer_types
from numatp.models.prenorm import Temper
from numatp.models.rope import read_factors
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    QKV_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_ffn,
    read_pattern,
    read_sizes,
)
from numatp.program.values import Heads, LayerCache, Router, Value
from numatp.weights.load import Weights
from numatp.weights.matrix import Matrix
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

# What llama.cpp takes for granted, and files that it writes do not say.
PERIOD = 4  # of four layers the last sees all tokens
CHUNK = 8192  # tokens, after as many of which queries grow
GROWTH = 0.1
PLAIN_HEADS = 128  # experts of the one model that does not normalise heads: Maverick


def _chunked(config: Config) -> list[bool]:
    """Per layer; the others are those that know no positions."""
    layers, period = config["num_hidden_layers"], config["no_rope_layer_interval"]
    turned = config.get("no_rope_layers") or [(layer + 1) % period != 0 for layer in range(layers)]
    in_chunks = config["attention_chunk_size"] is not None
    flags: list[bool] = layer_types("chunked_attention")(config) or [bool(flag and in_chunks) for flag in turned]
    if flags != [bool(flag) for flag in turned] and (any(flags) or not all(turned)):
        raise CannotComputeError("has other layers without positions than those that see all tokens ('no_rope_layers')")
    return flags


def _pattern(config: Config) -> list[bool] | None:
    flags = _chunked(config)
    return None if flags == [(layer + 1) % PERIOD != 0 for layer in range(len(flags))] or not any(flags) else flags


def _chunk(config: Config) -> Any:
    return config["attention_chunk_size"] if any(_chunked(config)) else 0


def _step(config: Config) -> int:
    """Layers of which the last has experts."""
    listed, layers = config.get("moe_layers"), config["num_hidden_layers"]
    step = int(config["interleave_moe_layer_step"] if listed is None else listed[0] + 1 if listed else 0)
    if step < 1 or (listed is not None and list(listed) != list(range(step - 1, layers, step))):
        raise CannotComputeError("has experts in layers that are not evenly apart, or in none ('moe_layers')")
    return step


def _heads_normalized(config: Config) -> bool | None:
    """Where it is not as llama.cpp guesses."""
    wanted = bool(config["use_qk_norm"])
    return None if wanted == (config.get("num_local_experts") != PLAIN_HEADS) else wanted


FEED_FORWARD = "model.layers.{layer}.feed_forward"
HUGGING_FACE = HuggingFace(
    classes={
        "Llama4ForCausalLM": {
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "head_dim": 128, "num_experts_per_tok": 1, "num_local_experts": 16,
            "interleave_moe_layer_step": 1, "no_rope_layer_interval": 4, "attention_chunk_size": CHUNK, "use_qk_norm": True,
            "attn_temperature_tuning": True, "floor_scale": CHUNK, "attn_scale": GROWTH, "intermediate_size_mlp": 16384,
        },
    },
    config=LLAMA3_CONFIG
    | {
        "feed_forward_length": "intermediate_size_mlp",
        "expert_feed_forward_length": "intermediate_size",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "interleave_moe_layer_step": _step,
        "attention.sliding_window": _chunk,
        "attention.sliding_window_pattern": _pattern,
        "attention.temperature_scale": lambda config: config["attn_scale"] if config["attn_temperature_tuning"] else 0.0,
        "attention.temperature_length": "floor_scale",
        "attention.heads_normalized": _heads_normalized,
    },
    tensors=ENDS
    | ATTENTION
    | {"blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight"}
    | {
        f"blk.{{layer}}.ffn_{name}{kind}.weight": f"{FEED_FORWARD}{theirs}.{name}_proj.weight"
        for name in ("gate", "up", "down")
        for kind, theirs in {"": "", "_shexp": ".shared_expert"}.items()
    }
    | {"blk.{layer}.ffn_gate_inp.weight": f"{FEED_FORWARD}.router.weight"}
    | {
        f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(
            f"{FEED_FORWARD}.experts.{theirs}.weight", order=rows, transposed=f"{FEED_FORWARD}.experts.{theirs}"
        )
        for name, (theirs, rows) in TOGETHER.items()
    },
    computed={"rope_freqs.weight": rope_factors},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False},
    texts={
        "llama4_text": ("Llama4ForCausalLM", {
            "hidden_size": 5120, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "max_position_embeddings": 131072,
        }),
    },
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Llama4Spec(Spec):
    router: Router
    mixture: tuple[bool, ...]  # per layer: whether it has experts instead of a feed-forward network
    temper: Temper | None  # in layers that know no positions
    still: tuple[int, ...]  # the numbers of those
    heads_normalized: bool  # in the other layers
    divided: bool  # whether the frequencies of the rotation are divided by a tensor


def read_spec(file: ModelFile) -> Llama4Spec:
    layers = file.count("llama4.block_count", most=max(len(file.tensors), 1))
    step = file.count("llama4.interleave_moe_layer_step")
    mixture = tuple((layer + 1) % step == 0 for layer in range(layers))
    experts, used = read_experts(file), file.count("llama4.expert_used_count")
    sizes = read_sizes(file, **experts, shared_ffn=experts["expert_ffn"], **({} if all(mixture) else read_ffn(file)))
    chunk = file.integer("llama4.attention.sliding_window", default=CHUNK)
    chunked = read_pattern(file, "attention.sliding_window_pattern", PERIOD) if chunk else [False] * layers
    if chunk < 0:
        file.fail(f"claims chunks of {chunk} tokens ('llama4.attention.sliding_window'); convert the model again")
    full, own = Attention(sizes.head_size, sizes.head_size), Attention(sizes.head_size, sizes.head_size, chunk, chunked=True)
    growth = file.number("llama4.attention.temperature_scale", default=GROWTH)
    every = file.count("llama4.attention.temperature_length", default=CHUNK)
    return read_common(
        file, Llama4Spec, sizes=sizes, layers=tuple(own if flag else full for flag in chunked), experts_used=used,
        router=Router(used=used, function="sigmoid", normalize=False), mixture=mixture, divided=read_factors(file),
        temper=Temper(growth, every) if growth else None,
        still=tuple(layer for layer, flag in enumerate(chunked) if not flag and chunk),
        heads_normalized=file.flag("llama4.attention.heads_normalized", default=experts["experts"] != PLAIN_HEADS),
    )  # fmt: skip


def rules(spec: Llama4Spec) -> list[Rule]:
    dense = (*GATE_UP_RULES, DOWN_RULE)
    mixture = (ROUTER_RULE, *SHARED_EXPERT_RULES[1:], *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE)
    listed = decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            *(mixture if spec.mixture[layer] else dense),
        ),
    )
    return [*listed, Rule.vector("rope_freqs.weight", str(len(spec.rope.frequencies)))] if spec.divided else listed


def forward(p: "Ops", spec: Llama4Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    frequencies = spec.rope.frequencies / (weights.floats("rope_freqs.weight") if spec.divided else 1)
    # Heads are normalised after the rotation, which undoes its scale; before it is the same.
    angles = p.rotation(frequencies, 1.0 if spec.heads_normalized else spec.rope.scale)

    def attention(layer: int, h: Value, cache: LayerCache) -> Value:
        """Before the output matrix."""
        qkv = p.matmul(h, *(matrix(f"blk.{layer}.attn_{name}.weight") for name in "qkv"))
        if layer in spec.still:
            qkv = p.rotate_and_append(qkv, heads, None, cache, neighbours=True)
            if spec.temper:
                qkv = p.temper_heads(qkv, heads, spec.temper.every, spec.temper.by, shift=1.0)
        else:
            if spec.heads_normalized:
                qkv = p.rms_norm_heads(qkv, heads, None, None, epsilon)
            qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=True)
        return p.attention(qkv, heads, 1 / sqrt(heads.size), cache)

    def gate_up(blk: str, kind: str = "") -> list[Matrix]:
        return [matrix(f"{blk}.ffn_{name}{kind}.weight") for name in ("gate", "up")]

    def add_mixture(blk: str, x: Value, h: Value) -> Value:
        routes = p.route_wanted(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.router, None)
        made, shared = p.expert_and_shared_matmul(h, routes, gate_up(blk, "_exps"), gate_up(blk, "_shexp"))
        made, routes = p.weigh_places(made, routes)  # as if their input had been: both products are linear in it
        down, shared_down = matrix(f"{blk}.ffn_down_exps.weight"), matrix(f"{blk}.ffn_down_shexp.weight")
        return p.add_experts(x, p.silu_gate(made), routes, down, (p.silu_gate(shared), shared_down))

    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon)
        x = p.add_product(x, attention(layer, h, cache), matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), epsilon)
        if spec.mixture[layer]:
            x = add_mixture(blk, x, h)
        else:
            x = p.add_product(x, p.silu_gate(p.matmul(h, *gate_up(blk))), matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
