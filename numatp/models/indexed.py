"""What DeepSeek-V3.2 and GLM-5 have in common: latent attention (latent.py) to the tokens that an indexer chooses, which keeps a
key of its own of each token. Every rank chooses for itself, from the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numatp.files.huggingface import CannotComputeError
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.latent import (
    LATENT_CONFIG,
    LATENT_ONLY,
    LATENT_TENSORS,
    LAYER,
    LatentSpec,
    latent_forward,
    latent_rules,
    read_latent,
)
from numatp.models.layers import Attention, IndexedAttention
from numatp.models.names import Keys
from numatp.models.routed import dense_layers_first
from numatp.program.values import LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

EPSILON = 1e-6  # of the norm of the indexer's keys, in every model


@dataclass(frozen=True, kw_only=True)
class IndexedSpec(LatentSpec):
    top: int  # tokens that a row sees
    indexes: tuple[bool, ...]  # by layer: whether it has an indexer, else it sees what the last one with one chose
    neighbours: bool  # whether the values of the indexer that turn together lie side by side, else half of those that turn apart


def read_indexes(file: ModelFile, first: int = 0) -> tuple[bool, ...]:
    """Whether each layer has an indexer: where a file is silent, by the tensors that are there, or all. first: the number of the
    first layer that must have one.
    """
    name = file.text("general.architecture")
    layers = file.count(f"{name}.block_count", most=max(len(file.tensors), 1))
    there = [layer == first or f"blk.{layer}.indexer.attn_k.weight" in file.tensors for layer in range(layers)]
    flags = tuple(file.flags(f"{name}.attention.indexer.types", default=there if sum(there) > 1 else [True] * layers))
    if len(flags) < layers or not flags[first]:
        file.fail(f"has {len(flags)} entries for {layers} layers in '{name}.attention.indexer.types', or none for layer {first}")
    return flags[:layers]


def read_indexed(file: ModelFile, neighbours: bool) -> IndexedSpec:
    name = file.text("general.architecture")
    heads, size, top = (file.count(f"{name}.attention.indexer.{key}") for key in ("head_count", "key_length", "top_k"))
    rotated = file.count(f"{name}.rope.dimension_count")
    if size % 32 or rotated > size:
        file.fail(f"has an indexer with keys of {size} values, {rotated} of them rotated, which numatp cannot compute")
    indexes = read_indexes(file)

    def layer(number: int, rows: Attention) -> Attention:
        chooser = max(i for i in range(number + 1) if indexes[i])
        return IndexedAttention(
            rows.key_size, rows.value_size, heads=rows.heads, top=top, index_size=size if indexes[number] else 0,
            needs=None if chooser == number else chooser,
        )  # fmt: skip

    more = {"index_heads": heads, "index_size": size}
    spec = read_latent(file, IndexedSpec, layer, more, top=top, indexes=indexes, neighbours=neighbours)
    if not spec.low_rank_queries:
        file.fail(f"lacks '{name}.attention.q_lora_rank', which its indexer needs; convert the model again")
    return spec


def indexer_rules(*beside: Rule) -> tuple[Rule, ...]:
    """Of one layer's; beside: what is multiplied with the same rows as the keys' matrix."""
    return (
        Rule.matrix("indexer.attn_k.weight", "index_size", "width"),
        *beside,
        Rule.vector("indexer.k_norm.weight", "index_size"),
        Rule.vector("indexer.k_norm.bias", "index_size"),
        Rule.matrix("indexer.attn_q_b.weight", "index_heads*index_size", "query_rank"),
        Rule.router("indexer.proj.weight", "index_heads", "width"),
    )


def indexed_rules(spec: IndexedSpec) -> list[Rule]:
    indexer = indexer_rules()

    def more(layer: int) -> Sequence[Rule]:
        return indexer if spec.indexes[layer] else ()

    return latent_rules(spec, more)


def indexed_forward(p: "Ops", spec: IndexedSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    matrix, vector = weights.matrix, weights.vector
    chosen: Value | None = None

    def choose(blk: str, h: Value, low: Value, angles: Value, cache: LayerCache) -> Value | None:
        nonlocal chosen
        if p.longest <= spec.top:  # no sequence can have more
            return None
        if cache.index:
            keys, name = p.matmul(h, matrix(f"{blk}.indexer.attn_k.weight")), f"{blk}.indexer.k_norm"
            p.append_index(keys, vector(f"{name}.weight"), vector(f"{name}.bias"), EPSILON, angles, spec.neighbours, cache)
            q = p.matmul(low, matrix(f"{blk}.indexer.attn_q_b.weight"))
            heads = p.matmul(h, matrix(f"{blk}.indexer.proj.weight"))
            chosen = p.choose_tokens(q, heads, angles, spec.neighbours, cache, spec.top)
        return chosen

    latent_forward(p, spec, split, weights, caches, choose)


# ---------------------------------------------------------------- folders


def indexers_listed(config: Config) -> Any:
    """As attention.indexer.types."""
    kinds = config.get("indexer_types")
    if kinds is None:
        for key in ("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"):
            if config.get(key) not in (None, 1 if key == "index_topk_freq" else None):
                raise CannotComputeError(f"says which layers have indexers by {key!r}")
        return None
    others = [kind for kind in kinds if kind not in ("full", "shared")]
    if others:
        raise CannotComputeError(f"has indexers of kind {others[0]!r} ('indexer_types')")
    return [kind == "full" for kind in kinds]


INDEXED_CONFIG: Keys = LATENT_CONFIG | {
    "leading_dense_block_count": dense_layers_first,
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
}
INDEXED_TENSORS = LATENT_TENSORS | {
    f"blk.{{layer}}.indexer.{ours}": f"{LAYER}.indexer.{theirs}"
    for ours, theirs in (
        ("attn_k.weight", "wk.weight"),
        ("attn_q_b.weight", "wq_b.weight"),
        ("proj.weight", "weights_proj.weight"),
        ("k_norm.weight", "k_norm.weight"),
        ("k_norm.bias", "k_norm.bias"),
    )
}
INDEXED_ONLY = LATENT_ONLY | {"mlp_bias": False}
