"""DeepSeek-V4: hyper-connected layers (kernels/streams.py) of attention to the last tokens and to entries that stand for several
each (kernels/compressed.py), and experts, which in the first layers a table lists for each token.

Of three kinds of layers one sees its window alone; one has an entry for OVERLAPPING tokens, of which an indexer chooses; one has an
entry for many more, and sees all of them. One row is kept of a token, which is key and value of all heads: they are rotated both,
and what attention makes of them is rotated back. Heads are cut in whole groups, whose outputs a matrix of their own makes smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.model_file import ModelFile
from numatp.kernels.layout import CACHE_BLOCK, MAX_HEAD_SIZE
from numatp.kernels.states import INDEX_HEADS, STREAMS, pooled_bytes
from numatp.models.deepseek4_names import HUGGING_FACE as HUGGING_FACE
from numatp.models.deepseek4_names import OVERLAPPING, ROOT_OF_SOFTPLUS
from numatp.models.layers import InSlots, Layer, Recurrent, Several, SharedRows
from numatp.models.rope import Rope, plain, read_base, read_rope
from numatp.models.routed import Style, feed_forward_sizes
from numatp.models.spec import (
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    decoder_rules,
    read_common,
    read_vocab,
)
from numatp.models.streams import (
    StreamsSpec,
    gather_streams,
    limited_experts,
    read_streams,
    streams_rules,
    through_layers,
)
from numatp.program.values import Heads, Kept, LayerRows, LayerState, Router, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import COLUMN_UNIT, Cut, Sizes, Split, cut_heads, cut_rows

if TYPE_CHECKING:
    from numatp.program.ops import Ops

NAME = "deepseek4"


@dataclass(frozen=True, kw_only=True)
class DeepSeek4Spec(StreamsSpec):
    router: Router
    listed: int  # layers, the first ones, in which a table lists each token's experts
    ratios: tuple[int, ...]  # by layer: tokens of an entry; 0: it has none
    far: Rope  # of layers with entries
    top: int  # entries that an indexer chooses


def read_spec(file: ModelFile) -> DeepSeek4Spec:
    def count(key: str) -> int:
        return file.count(f"{NAME}.{key}")

    layers = file.count(f"{NAME}.block_count", most=max(len(file.tensors), 1))
    width, heads, head_size = count("embedding_length"), count("attention.head_count"), count("attention.key_length")
    rotated, rank = count("rope.dimension_count"), count("attention.q_lora_rank")
    groups, out_rank = count("attention.output_group_count"), count("attention.output_lora_rank")
    index_heads, index_size = count("attention.indexer.head_count"), count("attention.indexer.key_length")
    ratios = _read_ratios(file, layers)
    units = {"width": width, "heads' size": head_size, "rank of queries": rank, "rank of outputs": out_rank, "indexer": index_size}
    for what, size in units.items():
        if size % COLUMN_UNIT:
            file.fail(f"has a {what} of {size}, no multiple of {COLUMN_UNIT}, which numatp cannot compute; use another model")
    if head_size > MAX_HEAD_SIZE or rotated % 2 or rotated > min(head_size, index_size) or heads % groups:
        file.fail(f"has {heads} heads of {head_size} in {groups} groups, {rotated} values of them rotated; convert the model again")
    if index_heads % INDEX_HEADS:
        file.fail(f"has an indexer of {index_heads} heads, and numatp computes multiples of {INDEX_HEADS}; use another model")
    whole_groups = cut_heads(groups, out_rank)
    sizes = Sizes(
        width=width, heads=Cut(heads, whole_groups.unit * (heads // groups)), groups=whole_groups, head_size=head_size,
        group_width=heads // groups * head_size, query_rank=rank, out_rank=out_rank, index_heads=index_heads,
        index_size=index_size, streams_width=STREAMS * width, used=count("expert_used_count"), all_tokens=read_vocab(file),
        vocab=cut_rows(read_vocab(file)), **feed_forward_sizes(file, Style()),
    )  # fmt: skip
    top = count("attention.indexer.top_k")
    window = count("attention.sliding_window")
    return read_common(
        file, DeepSeek4Spec, sizes=sizes, layers=tuple(_layer(ratio, head_size, index_size, window, top) for ratio in ratios),
        rope=Rope(plain(read_base(file, f"{NAME}.rope.freq_base"), rotated)), far=_read_far(file, head_size), ratios=ratios,
        top=top, router=_read_router(file), listed=_read_listed(file, layers), experts_used=count("expert_used_count"),
        **read_streams(file),
    )  # fmt: skip


def _read_ratios(file: ModelFile, layers: int) -> tuple[int, ...]:
    """Those of layers that predict further tokens may follow."""
    ratios = tuple(file.integers(f"{NAME}.attention.compress_ratios")[:layers])
    if len(ratios) < layers:
        file.fail(f"has {len(ratios)} values of '{NAME}.attention.compress_ratios' for {layers} layers; convert the model again")
    for ratio in ratios:
        if ratio and (ratio < OVERLAPPING or (CACHE_BLOCK % ratio and ratio % CACHE_BLOCK)):
            file.fail(f"has entries of {ratio} tokens, which numatp cannot compute; use another model")
    return ratios


def _layer(ratio: int, head_size: int, index_size: int, window: int, top: int) -> Layer:
    tokens = SharedRows(head_size, window)
    if not ratio:
        return tokens
    chosen = ratio == OVERLAPPING
    entries = SharedRows(head_size, None, ratio, *((top, index_size) if chosen else ()))
    state: InSlots = Recurrent(partial(_state_bytes, head_size, index_size if chosen else 0), piece=1)
    return Several((tokens, entries, state))


def _state_bytes(head_size: int, index_size: int, split: Split) -> int:
    """The same on every rank. index_size: 0 for entries that do not overlap."""
    return pooled_bytes(head_size, index_size > 0) + pooled_bytes(index_size, True)


def _read_far(file: ModelFile, head_size: int) -> Rope:
    """Turned values are not scaled, whatever YaRN says."""
    for key in ("attn_factor", "yarn_attn_factor"):
        if file.number(f"{NAME}.rope.scaling.{key}", default=1.0) != 1:
            file.fail(f"scales turned values ('{NAME}.rope.scaling.{key}'), which numatp cannot compute; use another model")
    return Rope(read_rope(file, head_size, base=f"{NAME}.attention.compress_rope_freq_base").frequencies)


def _read_router(file: ModelFile) -> Router:
    gate = file.integer(f"{NAME}.expert_gating_func")
    if gate != ROOT_OF_SOFTPLUS:
        file.fail(f"routes by function {gate} ('{NAME}.expert_gating_func'), which numatp cannot compute; use another model")
    return Router(
        used=file.count(f"{NAME}.expert_used_count"), function="root of softplus",
        normalize=file.flag(f"{NAME}.expert_weights_norm", default=False),
        factor=file.number(f"{NAME}.expert_weights_scale", default=1.0) or 1.0,
    )  # fmt: skip


def _read_listed(file: ModelFile, layers: int) -> int:
    listed = file.integer(f"{NAME}.hash_layer_count", default=0)
    if not 0 <= listed <= layers:
        file.fail(f"claims tables of experts for {listed} of its {layers} layers; convert the model again")
    return listed


# ---------------------------------------------------------------- tensors


def _compressor_rules(prefix: str, ratio: int, size: str) -> tuple[Rule, ...]:
    channels = f"2*{size}" if ratio == OVERLAPPING else size
    return (
        Rule.matrix(f"{prefix}_kv.weight", channels, "width"),
        Rule.matrix(f"{prefix}_gate.weight", channels, "width"),
        Rule.table(f"{prefix}_ape.weight", str(ratio), channels),
        Rule.vector(f"{prefix}_norm.weight", size),
    )


def rules(spec: DeepSeek4Spec) -> list[Rule]:
    indexer = (
        *_compressor_rules("indexer_compressor", OVERLAPPING, "index_size"),
        Rule.matrix("indexer.attn_q_b.weight", "index_heads*index_size", "query_rank"),
        Rule.router("indexer.proj.weight", "index_heads", "width"),
    )

    def layer(number: int) -> Sequence[Rule]:
        ratio = spec.ratios[number]
        choice = Rule.vector("exp_probs_b.bias", "experts")
        if number < spec.listed:
            choice = Rule.choices("ffn_gate_tid2eid.weight", "all_tokens", "used", below="experts")
        return (
            *streams_rules("hc_attn"),
            Rule.vector("attn_norm.weight", "width"),
            Rule.matrix("attn_q_a.weight", "query_rank", "width"),
            Rule.vector("attn_q_a_norm.weight", "query_rank"),
            Rule.matrix("attn_q_b.weight", "heads*head_size", "query_rank"),
            Rule.matrix("attn_kv.weight", "head_size", "width"),
            Rule.vector("attn_kv_a_norm.weight", "head_size"),
            *(_compressor_rules("attn_compressor", ratio, "head_size") if ratio else ()),
            *(indexer if ratio == OVERLAPPING else ()),
            Rule.vector("attn_sinks.weight", "heads"),
            Rule.stacked("attn_output_a.weight", "groups", "out_rank", "group_width"),
            Rule.matrix("attn_output_b.weight", "width", "groups*out_rank"),
            *streams_rules("hc_ffn"),
            Rule.vector("ffn_norm.weight", "width"),
            ROUTER_RULE,
            choice,
            *SHARED_EXPERT_RULES[1:],
            *EXPERT_GATE_UP_RULES,
            EXPERT_DOWN_RULE,
        )

    return [*decoder_rules(spec, layer), *streams_rules("output_hc", STREAMS, 1)]


# ---------------------------------------------------------------- forward pass


def forward(
    p: "Ops", spec: DeepSeek4Spec, split: Split, weights: Weights, caches: Sequence[Kept | tuple[Kept, ...]]
) -> None:  # fmt: skip
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    count = len(split.heads)
    heads = Heads(range(count), range(0), 1, sizes.head_size)
    rotations = {far: p.rotation(rope.frequencies) for far, rope in ((False, spec.rope), (True, spec.far))}
    rotations_back = {far: p.rotation(-rope.frequencies) for far, rope in ((False, spec.rope), (True, spec.far))}
    routes = p.route_heads(len(split.groups))

    def entries_of(blk: str, made: Sequence[Value], low: Value, state: LayerState, entries: LayerRows) -> Value | None:
        """The entries that rows see, None: all. made: what becomes entries and, where rows choose, what becomes their keys, and
        the weights of heads that choose.
        """

        def append(prefix: str, both: Value, begin: int = 0, index: bool = False) -> None:
            places, norm = vector(f"{prefix}_ape.weight"), vector(f"{prefix}_norm.weight")
            p.append_entries(both, places, norm, epsilon, spec.far.frequencies, state, entries, begin, index)

        append(f"{blk}.attn_compressor", made[0])
        if len(made) == 1:
            return None
        append(f"{blk}.indexer_compressor", made[1], begin=pooled_bytes(sizes.head_size, True), index=True)
        q = p.matmul(low, matrix(f"{blk}.indexer.attn_q_b.weight"))
        return p.choose_entries(p.rotate_tails(q, sizes.index_heads, rotations[True]), made[2], entries, spec.top)

    def attention(blk: str, h: Value, cache: Kept | tuple[Kept, ...]) -> Value:
        tokens, *more = cache if isinstance(cache, tuple) else (cache,)
        assert isinstance(tokens, LayerRows)
        far, names = bool(more), [["attn_kv"], ["attn_q_a"]]
        kept: tuple[LayerState, LayerRows] | None = None
        if far:
            entries, state = more
            assert isinstance(entries, LayerRows) and isinstance(state, LayerState)
            kept = state, entries
            names.append(["attn_compressor_kv", "attn_compressor_gate"])
            if entries.index and p.longest // entries.every > spec.top:  # else no sequence has more than rows may see
                names += [["indexer_compressor_kv", "indexer_compressor_gate"], ["indexer.proj"]]
        row, low, *of_entries = p.matmuls(h, *([matrix(f"{blk}.{name}.weight") for name in group] for group in names))
        p.append_row(row, vector(f"{blk}.attn_kv_a_norm.weight"), epsilon, rotations[far], tokens)
        low = p.rms_norm(low, vector(f"{blk}.attn_q_a_norm.weight"), epsilon)
        q = p.rms_norm_heads(p.matmul(low, matrix(f"{blk}.attn_q_b.weight")), heads, None, None, epsilon)
        q = p.rotate_tails(q, count, rotations[far])
        chosen = entries_of(blk, of_entries, low, *kept) if kept else None
        sinks = vector(f"{blk}.attn_sinks.weight")
        made = p.compressed_attention(q, count, 1 / sqrt(sizes.head_size), sinks, tokens, kept and kept[1], chosen)
        made = p.rotate_tails(made, count, rotations_back[far])
        made = p.heads_by_rows(p.head_matmul(made, sizes.group_width, routes, matrix(f"{blk}.attn_output_a.weight")), routes)
        return p.product(made, matrix(f"{blk}.attn_output_b.weight"))

    def mixture(layer: int, blk: str, h: Value) -> Value:
        scores = p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight"))
        if layer < spec.listed:
            experts = p.route_listed(scores, spec.router, vector(f"{blk}.ffn_gate_tid2eid.weight"))
        else:
            experts = p.route_wanted(scores, spec.router, vector(f"{blk}.exp_probs_b.bias"))
        return limited_experts(p, spec, weights, layer, h, experts)

    x = through_layers(p, spec, split, weights, caches, attention, mixture)
    h, _ = gather_streams(p, spec, weights, x, "output_hc", "output_norm.weight", last=True)
    p.logits(h, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
