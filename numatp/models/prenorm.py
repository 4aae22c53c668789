"""What Llama, SmolLM3, Granite, Mistral 3 and Phi-3 have in common: blocks whose input is normalised, grouped-query attention with
rotary embedding, and SwiGLU or experts. They differ in which layers rotate, in factors of what is added up, and in names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from numatp.files.huggingface import Stored, numbered_rows
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, ENDS
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
    read_sizes,
)
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.matrix import Matrix
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops


@dataclass(frozen=True)
class Temper:
    """Queries are multiplied by 1 + by * log(1 + floor(position / every))."""

    by: float
    every: int  # tokens


@dataclass(frozen=True, kw_only=True)
class PrenormSpec(Spec):
    score_scale: float
    # Vectors that the frequencies of the rotation are divided by: one, or of two the first where no text can be longer than
    # `trained` tokens.
    factors: tuple[str, ...] = ()
    trained: int = 0
    still: tuple[int, ...] = ()  # layers that know no positions
    neighbours: bool = True  # whether the two values of a head that turn together lie side by side
    temper: Temper | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each half of a layer adds
    logit_scale: float = 1.0
    gate_above_up: bool = False  # in one matrix, which is called ffn_up
    mixture: bool = False  # whether layers have experts instead of a feed-forward network


def read_prenorm(file: ModelFile, **more: Any) -> PrenormSpec:
    """`more`: see read_common."""
    sizes = more.get("sizes") or read_sizes(file)
    return read_common(file, PrenormSpec, **{"score_scale": 1 / sqrt(sizes.head_size), **more})


def prenorm_rules(spec: PrenormSpec) -> list[Rule]:
    dense = (*((Rule.matrix("ffn_up.weight", "ffn + ffn", "width"),) if spec.gate_above_up else GATE_UP_RULES), DOWN_RULE)
    shared = SHARED_EXPERT_RULES[1:] if "shared_ffn" in spec.sizes else ()
    listed = decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            *((ROUTER_RULE, *shared, *EXPERT_GATE_UP_RULES, EXPERT_DOWN_RULE) if spec.mixture else dense),
        ),
    )
    return [*listed, *(Rule.vector(name, str(len(spec.rope.frequencies))) for name in spec.factors)]


def prenorm_forward(p: "Ops", spec: PrenormSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    frequencies = spec.rope.frequencies
    if spec.factors:
        frequencies = frequencies / weights.floats(spec.factors[-1 if p.longest > spec.trained else 0])
    angles = p.rotation(frequencies, spec.rope.scale)

    def gate_up(blk: str, kind: str = "") -> list[Matrix]:
        names = ("up",) if spec.gate_above_up and kind != "_exps" else ("gate", "up")
        return [matrix(f"{blk}.ffn_{name}{kind}.weight") for name in names]

    def add_mixture(blk: str, x: Value, h: Value) -> Value:
        routes = p.route(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, normalize=True)
        shared = []
        if "shared_ffn" in sizes:
            made, beside = p.expert_and_shared_matmul(h, routes, gate_up(blk, "_exps"), gate_up(blk, "_shexp"))
            shared = [(p.silu_gate(beside), matrix(f"{blk}.ffn_down_shexp.weight"))]
        else:
            made = p.expert_matmul(h, routes, *gate_up(blk, "_exps"))
        down = matrix(f"{blk}.ffn_down_exps.weight")
        return p.add_experts(x, p.silu_gate(made), routes, down, *shared, factor=spec.residual_scale)

    x = p.embed(matrix("token_embd.weight"), split.vocab.start, scale=spec.embedding_scale)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        turned = None if layer in spec.still else angles
        qkv = p.rotate_and_append(qkv, heads, turned, cache, neighbours=spec.neighbours)
        if spec.temper:
            qkv = p.temper_heads(qkv, heads, spec.temper.every, spec.temper.by)
        h = p.attention(qkv, heads, spec.score_scale, cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"), factor=spec.residual_scale)
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        if spec.mixture:
            x = add_mixture(blk, x, h)
        else:
            h = p.silu_gate(p.matmul(h, *gate_up(blk)))
            x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"), factor=spec.residual_scale)
    # Scaling the normalised rows scales the logits.
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True, scale=spec.logit_scale)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)


# ---------------------------------------------------------------- folders


def _neighbours(heads: str) -> Callable[[ModelFile], tuple[np.ndarray, int]]:
    """Rows of queries or keys: GGUF has the two values that rotate together side by side, folders half a head apart."""

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        sizes = read_sizes(file)
        rows = numbered_rows(file, sizes[heads], 2, sizes.head_size // 2)
        return rows.swapaxes(1, 2).ravel(), rows.size

    return read


# Where pairs are neighbours.
PRENORM_TENSORS: dict[str, str | Stored] = {
    **ENDS,
    **ATTENTION,
    "blk.{layer}.attn_q.weight": Stored("model.layers.{layer}.self_attn.q_proj.weight", order=_neighbours("heads")),
    "blk.{layer}.attn_k.weight": Stored("model.layers.{layer}.self_attn.k_proj.weight", order=_neighbours("kv_heads")),
    "blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
}
