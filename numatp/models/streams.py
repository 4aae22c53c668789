"""What DeepSeek-V4 and GLM-5.3-Flash have in common: hyper-connected layers (kernels/streams.py), whose residual is several rows
of a token side by side, and gates of feed-forward networks that are limited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from numatp.files.model_file import ModelFile
from numatp.kernels.states import MIXES, STREAMS
from numatp.models.spec import Spec
from numatp.program.values import Routes, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

CacheKind = TypeVar("CacheKind")


@dataclass(frozen=True, kw_only=True)
class StreamsSpec(Spec):
    limits: tuple[float, ...]  # by layer: of what an expert's gate multiplies
    shared_limits: tuple[float, ...]  # the same of what all rows go through: the shared expert, or a layer without experts
    rounds: int  # of Sinkhorn and Knopp
    least: float  # see kernels/streams.py

    @property
    def between(self) -> int:
        """See Spec."""
        return STREAMS * self.sizes.width


def read_streams(file: ModelFile) -> dict[str, Any]:
    """What StreamsSpec has more than Spec."""
    name = file.text("general.architecture")
    layers, streams = (
        file.count(f"{name}.block_count", most=max(len(file.tensors), 1)),
        file.count(f"{name}.hyper_connection.count"),
    )
    if streams != STREAMS:
        file.fail(f"has a residual of {streams} streams, and numatp computes {STREAMS}; use another model")
    return {
        "limits": _read_limits(file, "exp", layers), "shared_limits": _read_limits(file, "shexp", layers),
        "rounds": file.count(f"{name}.hyper_connection.sinkhorn_iterations"),
        "least": file.positive(f"{name}.hyper_connection.epsilon"),
    }  # fmt: skip


def _read_limits(file: ModelFile, kind: str, layers: int) -> tuple[float, ...]:
    """One for each layer, or one number for all; those of the shared expert are the others' where a file is silent."""
    key = f"{file.text('general.architecture')}.swiglu_clamp_{kind}"
    if kind == "shexp" and not file.is_list(key) and file.number(key, default=0.0) == 0:
        return _read_limits(file, "exp", layers)
    limits = tuple(file.numbers(key)[:layers]) if file.is_list(key) else (file.number(key),) * layers
    if len(limits) < layers or not all(1e-3 <= limit <= 1e6 for limit in limits):
        file.fail(f"has no limit above 0 for each of its {layers} layers ('{key}'); convert the model again")
    return limits


def streams_rules(name: str, mixes: int = MIXES, scales: int = 3) -> tuple[Rule, ...]:
    """Of the connections of one block; "streams_width" is all streams together."""
    return (
        Rule.router(f"{name}_fn.weight", str(mixes), "streams_width"),
        Rule.vector(f"{name}_base.weight", str(mixes)),
        Rule.vector(f"{name}_scale.weight", str(scales)),
    )


def gather_streams(
    p: "Ops", spec: StreamsSpec, weights: Weights, x: Value, name: str, norm: str, last: bool = False
) -> tuple[Value, Value]:
    """See the word of that name; the connections' tensors begin with `name`."""
    mixes = p.matmul(x, weights.matrix(f"{name}_fn.weight"))
    scale, base = weights.vector(f"{name}_scale.weight"), weights.vector(f"{name}_base.weight")
    return p.gather_streams(x, mixes, scale, base, spec.rounds, spec.least, weights.vector(norm), spec.epsilon, last)


def through_layers(
    p: "Ops", spec: StreamsSpec, split: Split, weights: Weights, caches: Sequence[CacheKind],
    attention: Callable[[str, Value, CacheKind], Value], feed_forward: Callable[[int, str, Value], Value],
) -> Value:  # fmt: skip
    """The streams behind all layers. attention(block, h, cache), feed_forward(layer, block, h): what a block makes of its rows,
    whole on every rank.
    """
    x = p.spread_streams(p.embed(weights.matrix("token_embd.weight"), split.vocab.start))
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h, shares = gather_streams(p, spec, weights, x, f"{blk}.hc_attn", f"{blk}.attn_norm.weight")
        x = p.merge_streams(x, attention(blk, h, cache), shares)
        h, shares = gather_streams(p, spec, weights, x, f"{blk}.hc_ffn", f"{blk}.ffn_norm.weight")
        x = p.merge_streams(x, feed_forward(layer, blk, h), shares)
    return x


def limited_experts(
    p: "Ops", spec: StreamsSpec, weights: Weights, layer: int, h: Value, routes: Routes
) -> Value:  # fmt: skip
    """What a row's experts make of it and the one that all rows go through, added up over ranks."""
    blk, matrix = f"blk.{layer}", weights.matrix
    experts, shared_expert = ([matrix(f"{blk}.ffn_{name}_{kind}.weight") for name in ("gate", "up")] for kind in ("exps", "shexp"))
    inner, shared = p.expert_and_shared_matmul(h, routes, experts, shared_expert)
    shared = p.clamped_gate(shared, 1.0, spec.shared_limits[layer], shift=0.0)
    inner = p.clamped_gate(inner, 1.0, spec.limits[layer], shift=0.0)
    down, shared_down = matrix(f"{blk}.ffn_down_exps.weight"), matrix(f"{blk}.ffn_down_shexp.weight")
    return p.experts_product(inner, routes, down, (shared, shared_down))
