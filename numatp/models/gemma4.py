"""Gemma 4 (text; E2B, E4B, 12B, 26B-A4B and 31B): most layers see a window of tokens, the others have heads of another size, of
which a part rotates, and may take keys as values. Values are normalised, scores are not scaled, and each layer's result is
multiplied by a number. In models with experts all rows go through a feed-forward network too: both results are normalised, added
up, and normalised again. In E2B and E4B each layer adds something for the token alone, of a table of its own, and the last layers
read keys and values of earlier ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.model_file import ModelFile
from numatp.models.gemma4_names import FOLDER, PERIOD
from numatp.models.layers import Attention, Borrowing
from numatp.models.rope import plain, read_base, read_factors, read_rope
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_RULES,
    ROUTER_RULE,
    Spec,
    check_heads,
    decoder_rules,
    decoder_sizes,
    read_cap,
    read_common,
    read_experts,
    read_ffn,
    read_kv_heads,
    read_pattern,
    read_vocab,
)
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import COLUMN_UNIT, Cut, Shared, Split, cut_columns

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = FOLDER


@dataclass(frozen=True)
class Gemma4Spec(Spec):
    window_base: float  # of the rotation in layers that see a window
    logit_cap: float  # 0: none
    divided: bool  # whether the frequencies of the other layers are divided by a tensor
    slides: tuple[bool, ...]  # per layer: whether it sees a window
    from_keys: tuple[bool, ...]  # per layer: whether its keys are its values too
    mixture: bool  # whether layers have experts too
    own: int  # layers with keys and values of their own, the first ones
    wide: tuple[bool, ...]  # per layer: whether its feed-forward network is of the other width, `wide_ffn`
    input_size: int  # of what each layer has of a token alone; 0: nothing


def read_spec(file: ModelFile) -> Gemma4Spec:
    flags = read_pattern(file, "attention.sliding_window_pattern", PERIOD)
    own = _read_own_layers(file, flags)
    ffn, wide = _read_ffn(file, len(flags))
    mixture = file.integer("gemma4.expert_count", default=0) > 0
    width, heads = file.count("gemma4.embedding_length"), file.count_of_layers("gemma4.attention.head_count")
    size, full_size = file.count("gemma4.attention.key_length_swa"), file.count("gemma4.attention.key_length")
    kv_heads, full_kv_heads = read_kv_heads(file, flags)
    check_heads(file, width, heads, kv_heads, size)
    check_heads(file, width, heads, full_kv_heads, full_size)
    sizes = decoder_sizes(
        width, heads, kv_heads, size, read_vocab(file), **ffn, **(read_experts(file) if mixture else {}),
        **_read_input_size(file, width),
        full_size=full_size, full_kv_heads=Shared(full_kv_heads, "heads", heads // full_kv_heads),
    )  # fmt: skip
    window = file.count("gemma4.attention.sliding_window")
    input_size = sizes.layer_input if "layer_input" in sizes else 0
    needs = 0 if input_size else None  # what each layer has of a token alone is made of the embedding, before the first
    kinds = {
        True: Attention(size, size, window, needs=needs),
        False: Attention(full_size, full_size, heads="full_kv_heads", needs=needs),
    }
    layers = [kinds[slides] for slides in flags[:own]]
    for slides in flags[own:]:
        lender = max(layer for layer in range(own) if flags[layer] == slides)
        lent = vars(kinds[slides]) | {"needs": 0 if input_size else lender}
        layers.append(Borrowing(**lent, lender=lender))
    return read_common(
        file, Gemma4Spec, sizes=sizes, layers=tuple(layers), own=own, wide=wide, input_size=input_size,
        rope=read_rope(file, full_size), window_base=read_base(file, "gemma4.rope.freq_base_swa"),
        logit_cap=read_cap(file, "final_logit_softcapping"), divided=read_factors(file),
        slides=tuple(flags), from_keys=tuple(
            f"blk.{layer}.attn_v.weight" not in file.tensors and f"blk.{layer}.attn_qkv.weight" not in file.tensors
            and layer < own
            for layer in range(len(flags))
        ),
        mixture=mixture, layer_exchanges=2 + mixture + (input_size > 0),
        first_exchanges=1 + (-(-len(flags) // (width // input_size)) if input_size else 0),
        experts_used=file.count("gemma4.expert_used_count") if mixture else 0,
    )  # fmt: skip


def _read_own_layers(file: ModelFile, flags: list[bool]) -> int:
    """How many have keys and values of their own; what files have for the others, and nobody reads, is left out."""
    borrowing = file.integer("gemma4.attention.shared_kv_layers", default=0)
    own = len(flags) - borrowing
    if not 0 < own <= len(flags) or set(flags) - set(flags[:own]):
        file.fail(f"has {borrowing} layers that read keys and values of others, and no such others; convert the model again")
    spare = {f"blk.{layer}.{name}.weight" for layer in range(own, len(flags)) for name in ("attn_k", "attn_v", "attn_k_norm")}
    if file.flag("gemma4.attention.keys_are_values", default=False):  # which GGUF files say by having no such tensors
        spare |= {f"blk.{layer}.attn_v.weight" for layer, slides in enumerate(flags) if not slides}
    unread = spare & file.tensors.keys()
    for name in unread:
        del file.tensors[name]
    if unread:
        file.notes.append(f"{file.path}: {len(unread)} tensors are left out: their layers take other keys or values")
    return own


def _read_ffn(file: ModelFile, layers: int) -> tuple[dict[str, Cut], tuple[bool, ...]]:
    """Sizes of feed-forward networks, and which layers have the other one."""
    key = "gemma4.feed_forward_length"
    if not file.is_list(key):
        return read_ffn(file), (False,) * layers
    widths = list(file.integers(key))
    found = sorted(set(widths))
    if len(widths) != layers or len(found) > 2 or any(width < 1 or width % COLUMN_UNIT for width in found):
        file.fail(f"metadata '{key}' is not a multiple of {COLUMN_UNIT} for each layer, two at most; convert the model again")
    sizes = {"ffn": cut_columns(found[0])} | ({"wide_ffn": cut_columns(found[1])} if len(found) > 1 else {})
    return sizes, tuple(width != found[0] for width in widths)


def _read_input_size(file: ModelFile, width: int) -> dict[str, Cut]:
    """Of what each layer has of a token alone; without it there is no such size."""
    size = file.integer("gemma4.embedding_length_per_layer_input", default=0)
    if size and (not 0 < size <= width or size % COLUMN_UNIT):
        file.fail(f"has {size} values of a token for each layer, no multiple of {COLUMN_UNIT} up to {width}; use another model")
    return {"layer_input": cut_columns(size)} if size else {}


def rules(spec: Gemma4Spec) -> list[Rule]:
    def full(rule: Rule) -> Rule:
        """In a layer that sees all tokens."""
        return rule.in_words(kv_heads="full_kv_heads", head_size="full_size")

    experts = (
        Rule.vector("post_ffw_norm_1.weight", "width"),
        Rule.vector("ffn_gate_inp.scale", "width"),
        ROUTER_RULE,
        Rule.vector("ffn_down_exps.scale", "experts"),
        Rule.vector("pre_ffw_norm_2.weight", "width"),
        *EXPERT_GATE_UP_RULES,
        EXPERT_DOWN_RULE,
        Rule.vector("post_ffw_norm_2.weight", "width"),
    )

    of_token = (
        Rule.matrix("inp_gate.weight", "layer_input", "width"),
        Rule.matrix("proj.weight", "width", "layer_input"),
        Rule.vector("post_norm.weight", "width"),
    )

    def layer_rules(layer: int) -> list[Rule]:
        attention: tuple[Rule, ...] = (*(QKV_RULES[:2] if spec.from_keys[layer] else QKV_RULES), *HEAD_NORM_RULES)
        if layer >= spec.own:
            attention = (QKV_RULES[0], HEAD_NORM_RULES[0])
        attention = (*attention, ATTENTION_OUTPUT_RULE)
        ffn: Iterable[Rule] = (*GATE_UP_RULES, DOWN_RULE)
        if spec.wide[layer]:
            ffn = (rule.in_words(ffn="wide_ffn") for rule in ffn)
        return [
            Rule.vector("attn_norm.weight", "width"),
            *(attention if spec.slides[layer] else map(full, attention)),
            Rule.vector("post_attention_norm.weight", "width"),
            Rule.vector("ffn_norm.weight", "width"),
            *ffn,
            *(experts if spec.mixture else ()),
            Rule.vector("post_ffw_norm.weight", "width"),
            *(of_token if spec.input_size else ()),
            Rule.vector("layer_output_scale.weight", "1"),
        ]

    listed = decoder_rules(spec, layer_rules)
    if spec.input_size:
        inputs = str(len(spec.layers) * spec.input_size)
        listed += [
            Rule("per_layer_token_embd.weight", "embedding", ("vocab", inputs)),
            Rule.matrix("per_layer_model_proj.weight", inputs, "width"),  # whole on every rank: a norm follows
            Rule.vector("per_layer_proj_norm.weight", str(spec.input_size)),
        ]
    return [*listed, Rule.vector("rope_freqs.weight", str(len(spec.rope.frequencies)))] if spec.divided else listed


def forward(p: "Ops", spec: Gemma4Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    window_heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    full_heads = Heads(split.heads, split.full_kv_heads, sizes.heads // sizes.full_kv_heads, sizes.full_size)
    frequencies = spec.rope.frequencies / (weights.floats("rope_freqs.weight") if spec.divided else 1)
    full_angles, window_angles = p.rotation(frequencies, spec.rope.scale), p.rotation(plain(spec.window_base, sizes.head_size))

    def attention(layer: int, h: Value, cache: LayerCache) -> Value:
        """Before the output matrix."""
        blk, from_keys = f"blk.{layer}", spec.from_keys[layer]
        heads, angles = (full_heads, full_angles) if cache.sees_all else (window_heads, window_angles)
        if layer >= spec.own:
            return borrowing(blk, h, cache, heads, angles)
        parts = [matrix(f"{blk}.attn_{name}.weight") for name in ("qk" if from_keys else "qkv")]
        qkv = p.matmul(h, *parts, room=len(heads.keys) * heads.size if from_keys else 0)
        qkv = p.rms_norm_values(qkv, heads, epsilon, from_keys)
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        return p.attention(qkv, heads, 1.0, cache)

    def borrowing(blk: str, h: Value, cache: LayerCache, heads: Heads, angles: Value) -> Value:
        """As attention, where an earlier layer has appended to the cache."""
        queries, q_norm = replace(heads, keys=range(0)), vector(f"{blk}.attn_q_norm.weight")
        q = p.rms_norm_heads(p.matmul(h, matrix(f"{blk}.attn_q.weight")), queries, q_norm, q_norm, epsilon)
        q = p.rotate_and_append(q, queries, angles, cache, neighbours=False)
        return p.attention(q, heads, 1.0, cache)

    def inputs_of_layers(x: Value) -> list[Value]:
        """What each layer has of the tokens alone, (rows, this rank's part of input_size): of a table and of the embedding."""
        size, own, table = spec.input_size, split.layer_input, matrix("per_layer_token_embd.weight")
        layers, made = Heads(range(len(caches)), range(0), 1, size), p.matmul(x, matrix("per_layer_model_proj.weight"))
        norm = vector("per_layer_proj_norm.weight")
        # The product should be divided by the root of the width, which the norm undoes but for its epsilon.
        made = p.rms_norm_heads(made, layers, norm, norm, epsilon * sizes.width)
        found, together = [], sizes.width // size * size  # columns of the table in one exchange
        for first in range(0, made.width, together):
            columns = range(first, min(first + together, made.width))
            looked = p.embed_columns(table, split.vocab.start, columns, scale=sqrt(size / 2))
            looked = p.add_scaled(looked, made.columns(first, len(columns)), sqrt(1 / 2))
            found += [looked.columns(start + own.start, len(own)) for start in range(0, len(columns), size)]
        return found

    def add_input(blk: str, x: Value, own: Value, scale: float) -> Value:
        h = p.gelu_gate(p.matmul(x, matrix(f"{blk}.inp_gate.weight")), own)
        return p.add_normalized_product(x, h, matrix(f"{blk}.proj.weight"), vector(f"{blk}.post_norm.weight"), epsilon, scale)

    def feed_forward(blk: str, x: Value) -> Value:
        """What of each rank's product by ffn_down is added up."""
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), epsilon)
        return p.gelu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))

    def mixture(blk: str, x: Value) -> Value:
        """The feed-forward network's result and that of the experts, each normalised."""
        both = p.product(feed_forward(blk, x), matrix(f"{blk}.ffn_down.weight"))
        both = p.normalized(both, vector(f"{blk}.post_ffw_norm_1.weight"), epsilon)
        h = p.rms_norm(x, vector(f"{blk}.ffn_gate_inp.scale"), epsilon, scale=1 / sqrt(sizes.width))
        routes = p.route(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, normalize=True)
        routes = p.weigh_routes(routes, vector(f"{blk}.ffn_down_exps.scale"))
        h = p.rms_norm(x, vector(f"{blk}.pre_ffw_norm_2.weight"), epsilon)
        h = p.gelu_gate(p.expert_matmul(h, routes, *(matrix(f"{blk}.ffn_{name}_exps.weight") for name in ("gate", "up"))))
        made = p.experts_product(h, routes, matrix(f"{blk}.ffn_down_exps.weight"))
        return p.add_normalized(both, made, vector(f"{blk}.post_ffw_norm_2.weight"), epsilon)

    x = p.embed(matrix("token_embd.weight"), split.vocab.start, scale=sqrt(sizes.width))
    inputs = inputs_of_layers(x) if spec.input_size else []
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        layer_scale = float(weights.floats(f"{blk}.layer_output_scale.weight")[0])
        scale = 1.0 if inputs else layer_scale
        h = attention(layer, p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon), cache)
        out, after = matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.post_attention_norm.weight")
        x = p.add_normalized_product(x, h, out, after, epsilon)
        after = vector(f"{blk}.post_ffw_norm.weight")
        if spec.mixture:
            x = p.add_normalized(x, mixture(blk, x), after, epsilon, scale)
        else:
            x = p.add_normalized_product(x, feed_forward(blk, x), matrix(f"{blk}.ffn_down.weight"), after, epsilon, scale)
        if inputs:
            x = add_input(blk, x, inputs[layer], layer_scale)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start, cap=spec.logit_cap)
