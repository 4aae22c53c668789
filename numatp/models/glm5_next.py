"""GLM-5.3-Flash: hyper-connected layers (streams.py). Of every four one has latent attention, whose keys do not turn, to the tokens
that an indexer chooses in runs (kernels/pools.py); the others have Kimi Delta Attention (kimi_delta.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.states import ENTRY_TILE, INDEX_HEADS, STREAMS, pool_bytes
from numatp.models.hybrid import negative_exp
from numatp.models.indexed import EPSILON, INDEXED_CONFIG, INDEXED_TENSORS, indexer_rules, indexers_listed, read_indexes
from numatp.models.kimi_delta import (
    DeltaSpec,
    alike_heads,
    delta_tensors,
    linear_attention,
    linear_key,
    linear_rules,
    read_delta,
)
from numatp.models.latent import LAYER, attention_rules, latent_attention
from numatp.models.layers import Attention, IndexedAttention, Layer, Recurrent, Several
from numatp.models.names import ONLY, Keys
from numatp.models.rope import Rope
from numatp.models.routed import SIGMOID, Style
from numatp.models.spec import (
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    decoder_rules,
)
from numatp.models.streams import StreamsSpec, limited_experts, read_streams, streams_rules, through_layers
from numatp.program.values import Kept, LayerCache, LayerState, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

# Names that the first converters gave.
OLDER = {
    f"indexer{older}": f"indexer_compressor_{part}.weight"
    for part in ("gate", "ape")
    for older in (f"_compressor_{part}", f".kpool_{part}.weight")
}


@dataclass(frozen=True, kw_only=True)
class Glm5NextSpec(DeltaSpec, StreamsSpec):
    every: int  # tokens of a run
    top: int  # runs that an indexer chooses
    indexes: tuple[bool, ...]  # by layer: whether it has an indexer, else it sees what the last one with one chose
    index_epsilon: float  # of the norm of the indexer's keys


def read_spec(file: ModelFile) -> Glm5NextSpec:
    name = file.text("general.architecture")
    for tensor in list(file.tensors):
        block, _, rest = tensor.rpartition("indexer")
        if block and f"indexer{rest}" in OLDER:
            file.tensors[f"{block}{OLDER[f'indexer{rest}']}"] = file.tensors.pop(tensor)
    heads, size, top = (file.count(f"{name}.attention.indexer.{key}") for key in ("head_count", "key_length", "top_k"))
    every = file.count(f"{name}.attention.indexer.kpool", default=4)
    if size % 32 or heads % INDEX_HEADS:
        file.fail(f"has an indexer of {heads} heads of {size} values, and numatp computes multiples of {INDEX_HEADS} and of 32")
    if CACHE_BLOCK % every or CACHE_BLOCK // every > ENTRY_TILE or top % every:
        file.fail(f"chooses {top} tokens in runs of {every}, which numatp cannot compute; use another model")
    if not file.flag(f"{name}.attention.indexer.kpool_select_tail", default=True):
        file.fail(f"does not see the last tokens ('{name}.attention.indexer.kpool_select_tail'), which numatp cannot compute")
    if file.integer(f"{name}.rope.dimension_count", default=0):
        file.fail(f"rotates keys ('{name}.rope.dimension_count'), which numatp cannot compute; use another model")
    bound = file.number(f"{name}.kda.gate_lower_bound", default=0.0)
    if bound > 0:
        file.fail(f"has decays that grow, by '{name}.kda.gate_lower_bound'; convert the model again")
    full = [number for number, count in enumerate(file.integers(f"{name}.attention.head_count_kv")) if count]
    indexes = read_indexes(file, min(full, default=0))

    def kept(number: int, layer: Layer) -> Layer:
        if not isinstance(layer, Attention):
            return layer
        chooser = max(i for i in full if i <= number and indexes[i])
        needs = None if chooser == number else chooser
        seen = IndexedAttention(
            layer.key_size, layer.value_size, heads=layer.heads, top=top + every - 1, every=every,
            index_size=size if indexes[number] else 0, needs=needs,
        )  # fmt: skip
        return Several((seen, Recurrent(partial(_pool_bytes, size, every)))) if indexes[number] else seen

    spec = read_delta(
        file, Glm5NextSpec, Style(), kept,
        {"index_heads": heads, "index_size": size, "streams_width": STREAMS * file.count(f"{name}.embedding_length")},
        low_rank=True, bound=bound, rope=Rope(np.zeros(0)), every=every, top=top // every, indexes=indexes,
        index_epsilon=file.positive(f"{name}.attention.layer_norm_epsilon", default=EPSILON), **read_streams(file),
    )  # fmt: skip
    if not spec.low_rank_queries:
        file.fail(f"lacks '{name}.attention.q_lora_rank', which its indexer needs; convert the model again")
    return spec


def _pool_bytes(size: int, every: int, split: Split) -> int:
    """The same on every rank."""
    return pool_bytes(size, every)


# ---------------------------------------------------------------- tensors


def rules(spec: Glm5NextSpec) -> list[Rule]:
    latent, linear, indexer = attention_rules(spec), linear_rules(spec), indexer_rules(
        Rule.router("indexer_compressor_gate.weight", "index_size", "width"),
        Rule.table("indexer_compressor_ape.weight", str(spec.every), "index_size"),
    )  # fmt: skip
    mixture = (
        ROUTER_RULE, Rule.vector("exp_probs_b.bias", "experts"), *SHARED_EXPERT_RULES[1:], *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE,
    )  # fmt: skip

    def attention(layer: int) -> Sequence[Rule]:
        if isinstance(spec.layers[layer], Recurrent):
            return linear
        return (*latent[:-1], *(indexer if spec.indexes[layer] else ()), latent[-1])

    return decoder_rules(
        spec,
        lambda layer: (
            *streams_rules("hc_attn"),
            Rule.vector("attn_norm.weight", "width"),
            *attention(layer),
            *streams_rules("hc_ffn"),
            Rule.vector("ffn_norm.weight", "width"),
            *((*GATE_UP_RULES, DOWN_RULE) if layer < spec.dense_layers else mixture),
        ),
    )


# ---------------------------------------------------------------- forward pass


def forward(
    p: "Ops", spec: Glm5NextSpec, split: Split, weights: Weights, caches: Sequence[Kept | tuple[Kept, ...]]
) -> None:  # fmt: skip
    matrix, vector = weights.matrix, weights.vector
    linear = linear_attention(p, spec, split, weights)
    states = {f"blk.{layer}": kept[1] for layer, kept in enumerate(caches) if isinstance(kept, tuple)}
    chosen: Value | None = None

    def choose(blk: str, h: Value, low: Value, angles: Value, cache: LayerCache) -> Value | None:
        nonlocal chosen
        if p.longest // spec.every <= spec.top:  # no sequence can have more
            return None
        if cache.index:
            state, norm = states[blk], f"{blk}.indexer.k_norm"
            assert isinstance(state, LayerState)
            both = p.matmul(h, matrix(f"{blk}.indexer.attn_k.weight"), matrix(f"{blk}.indexer_compressor_gate.weight"))
            places = vector(f"{blk}.indexer_compressor_ape.weight")
            p.pool_index(both, vector(f"{norm}.weight"), vector(f"{norm}.bias"), spec.index_epsilon, places, state, cache)
            q = p.matmul(low, matrix(f"{blk}.indexer.attn_q_b.weight"))
            chosen = p.choose_entries(q, p.matmul(h, matrix(f"{blk}.indexer.proj.weight")), cache, spec.top)
        return chosen

    latent = latent_attention(p, spec, split, weights, choose)

    def attention(blk: str, h: Value, cache: Kept | tuple[Kept, ...]) -> Value:
        kept = cache[0] if isinstance(cache, tuple) else cache
        if isinstance(kept, LayerState):
            made = linear(blk, h, kept)
        else:
            assert isinstance(kept, LayerCache)
            made = latent(blk, h, kept)
        return p.product(made, matrix(f"{blk}.attn_output.weight"))

    def feed_forward(layer: int, blk: str, h: Value) -> Value:
        if layer < spec.dense_layers:
            inner = p.matmul(h, *(matrix(f"{blk}.ffn_{name}.weight") for name in ("gate", "up")))
            return p.product(p.clamped_gate(inner, 1.0, spec.shared_limits[layer], shift=0.0), matrix(f"{blk}.ffn_down.weight"))
        scores = p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight"))
        routes = p.route_wanted(scores, spec.router, vector(f"{blk}.exp_probs_b.bias"))
        return limited_experts(p, spec, weights, layer, h, routes)

    x = through_layers(p, spec, split, weights, caches, attention, feed_forward)
    h = p.mean_streams(x, vector("output_norm.weight"), spec.epsilon)
    p.logits(h, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)


# ---------------------------------------------------------------- folders

LINEAR, FULL = "linear_attention", ("indexed_attention", "full_attention", "deepseek_sparse_attention")


def _head_counts(config: Config) -> list[int]:
    """As attention.head_count_kv: 0 of layers of linear attention; where nothing is said, the last of four layers has another."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [int(layer % 4 == 3) for layer in range(config["num_hidden_layers"])]
    others = [kind for kind in kinds if kind not in (LINEAR, *FULL)]
    if others:
        raise CannotComputeError(f"has layers of kind {others[0]!r} ('layer_types')")
    return [int(kind != LINEAR) for kind in kinds]


def _bound(config: Config) -> Any:
    """Of the decays' logarithms."""
    listed = config.get("linear_attn_config") or {}
    bound = listed.get("gate_lower_bound", config["linear_lower_bound"])
    return -5.0 if bound is None and listed and listed.get("safe_gate", True) else bound


def _limits(config: Config) -> list[float]:
    return [float(config["swiglu_limit"])] * int(config["num_hidden_layers"])


CONFIG: Keys = INDEXED_CONFIG | {
    "attention.head_count": alike_heads,
    "attention.head_count_kv": _head_counts,
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": lambda config: EPSILON,
    "attention.indexer.kpool": "index_kpool",
    "attention.indexer.kpool_select_tail": "index_kpool_always_select_tail",
    "attention.indexer.types": indexers_listed,
    "kda.head_dim": linear_key("head_dim", "linear_head_dim"),
    "kda.gate_lower_bound": _bound,
    "ssm.conv_kernel": linear_key("short_conv_kernel_size", "linear_conv_kernel_dim"),
    "expert_gating_func": lambda config: SIGMOID,
    "swiglu_clamp_exp": _limits,
    "swiglu_clamp_shexp": _limits,
    "hyper_connection.count": "hc_mult",
    "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters",
    "hyper_connection.epsilon": "hc_eps",
}
UNSAID = {key for key in CONFIG if key.startswith("rope.") and key != "rope.dimension_count"}
CONFIG = {key: value for key, value in CONFIG.items() if key not in UNSAID}
TENSORS: dict[str, str | Stored] = (
    INDEXED_TENSORS
    | delta_tensors()
    | {f"blk.{{layer}}.ssm_{name}.weight": f"{LAYER}.{name}_proj.weight" for name in ("f_a", "f_b", "g_a", "g_b")}
    | {
        f"blk.{{layer}}.hc_{block}_{part}.weight": f"model.layers.{{layer}}.hc_{block}_{part}"
        for block in ("attn", "ffn")
        for part in ("fn", "base", "scale")
    }
    | {
        f"blk.{{layer}}.indexer_compressor_{part}.weight": f"{LAYER}.indexer.index_kpool_compress_{part}"
        for part in ("gate", "ape")
    }
    | {
        "blk.{layer}.ssm_a": Stored(f"{LAYER}.A_log", values=lambda logarithms: negative_exp(logarithms).ravel()),
    }
)
DEFAULTS: Config = {
    "vocab_size": 154880, "max_position_embeddings": 1048576, "rms_norm_eps": 1e-5, "first_k_dense_replace": 3, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "qk_rope_head_dim": 0,
    "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32, "index_kpool": 16, "index_kpool_always_select_tail": True,
    "linear_head_dim": 128, "linear_num_heads": 64, "linear_conv_kernel_dim": 4, "linear_lower_bound": -5.0, "swiglu_limit": 10.0,
    "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"Glm5NextForCausalLM": DEFAULTS},
    config=CONFIG,
    tensors=TENSORS,
    only=ONLY
    | {
        "hidden_act": "silu", "attention_bias": False, "mla_use_nope": True, "mhc": True, "qk_rope_head_dim": 0,
        "index_kpool_compress": True, "index_kpool_always_select_tail": True,
    },
    further_layers=True,
    ropes=None,
    texts={"glm5_next_text": ("Glm5NextForCausalLM", {})},
)  # fmt: skip
