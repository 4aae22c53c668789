"""What Kimi Linear, Ling 3 and GLM-5.3-Flash have in common: of every few layers one has latent attention (latent.py), the others
Kimi Delta Attention (kernels/channels.py), which keeps a state of fixed size; behind both experts, routed by sigmoids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from numatp.files.huggingface import CannotComputeError
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.kernels.states import MOST_LINEAR_HEAD, state_bytes
from numatp.models.hybrid import L2_EPSILON
from numatp.models.latent import LAYER, LatentSpec, attention_rules, latent_attention, read_latent
from numatp.models.layers import Attention, Layer, Recurrent
from numatp.models.routed import Style, mixture_forward, mixture_rules
from numatp.program.values import LayerCache, LayerState, LinearHeads, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Cut, Split, cut_heads

if TYPE_CHECKING:
    from numatp.program.ops import Ops


@dataclass(frozen=True, kw_only=True)
class DeltaSpec(LatentSpec):
    low_rank: bool  # whether decays and gates of linear attention come of two matrices each
    bound: float = 0.0  # see LinearHeads
    gated: bool = False  # whether each head of latent attention has a gate


DeltaKind = TypeVar("DeltaKind", bound=DeltaSpec)


def read_delta(
    file: ModelFile, kind: type[DeltaKind], style: Style, kept: Callable[[int, Layer], Layer] | None = None,
    more_sizes: Mapping[str, int | Cut] | None = None, **more: Any,
) -> DeltaKind:  # fmt: skip
    """kept(number, what it keeps): another kind of layer. `more`: see read_common."""
    name = file.text("general.architecture")
    size, conv_width = file.count(f"{name}.kda.head_dim"), file.count(f"{name}.ssm.conv_kernel")
    heads, counts = file.count_of_layers(f"{name}.attention.head_count"), file.integers(f"{name}.attention.head_count_kv")
    if size % 16 or size > MOST_LINEAR_HEAD or conv_width < 2:
        file.fail(
            f"has heads of {size} and a convolution over {conv_width} in linear attention; numatp computes multiples of 16 up to "
            f"{MOST_LINEAR_HEAD}, and convolutions from 2 on: use another model"
        )
    if len(counts) != file.count(f"{name}.block_count"):
        file.fail(f"has {len(counts)} values of '{name}.attention.head_count_kv', not one for each layer; convert it again")
    recurrent = Recurrent(partial(_state_bytes, size, conv_width))

    def layer(number: int, rows: Attention) -> Layer:
        found: Layer = rows if counts[number] else recurrent
        return kept(number, found) if kept else found

    sizes: dict[str, int | Cut] = {"delta_heads": cut_heads(heads, size), "all_heads": heads}
    sizes |= {"delta_size": size, "conv_width": conv_width}
    return read_latent(file, kind, layer, {**sizes, **(more_sizes or {})}, style, **more)


def _state_bytes(size: int, conv_width: int, split: Split) -> int:
    heads = len(split.delta_heads)
    return state_bytes(heads, heads, size, conv_width, by_channel=True)


HEADS = "delta_heads*delta_size"


def linear_rules(spec: DeltaSpec) -> tuple[Rule, ...]:
    """Those of one layer of linear attention between its norms."""
    gates = (Rule.matrix("ssm_f_a.weight", HEADS, "width"), Rule.matrix("ssm_g_a.weight", HEADS, "width"))
    if spec.low_rank:  # the first ones are small: every rank has all of them, and beta of all heads
        gates = (Rule.matrix("ssm_f_a.weight", "delta_size", "width"), Rule.matrix("ssm_g_a.weight", "delta_size", "width"))
    second = (Rule.matrix("ssm_f_b.weight", HEADS, "delta_size"), Rule.matrix("ssm_g_b.weight", HEADS, "delta_size"))
    return (
        *(Rule.matrix(f"attn_{name}.weight", HEADS, "width") for name in "qkv"),
        *gates,
        Rule.matrix("ssm_beta.weight", "all_heads", "width"),
        *(second if spec.low_rank else ()),
        *(Rule.table(f"ssm_conv1d_{name}.weight", HEADS, "conv_width", by="columns") for name in "qkv"),
        Rule.vector("ssm_a", "all_heads"),
        Rule.vector("ssm_dt.bias", HEADS),
        Rule.vector("ssm_norm.weight", "delta_size"),
        Rule.matrix("attn_output.weight", "width", HEADS),
    )


def delta_rules(spec: DeltaSpec) -> list[Rule]:
    latent, linear = attention_rules(spec), linear_rules(spec)
    if spec.gated:
        latent = (*latent[:-1], Rule.matrix("attn_gate.weight", "all_heads", "width"), latent[-1])
    return mixture_rules(spec, lambda layer: latent if isinstance(spec.layers[layer], Attention) else linear)


def linear_attention(
    p: "Ops", spec: DeltaSpec, split: Split, weights: Weights
) -> Callable[[str, Value, LayerState], Value]:  # fmt: skip
    """Of a block's normalised rows, before its output matrix."""
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = LinearHeads(split.delta_heads, sizes.all_heads, 1, sizes.delta_size, tiled=False, by_channel=True, bound=spec.bound)

    def delta(blk: str, h: Value, state: LayerState) -> Value:
        of_heads = [matrix(f"{blk}.attn_{name}.weight") for name in "qkv"]
        qkv, gates = p.matmuls(h, of_heads, [matrix(f"{blk}.ssm_{name}.weight") for name in ("f_a", "g_a", "beta")])
        width = heads.size if spec.low_rank else heads.width
        alpha, gate = gates.columns(0, width), gates.columns(width, width)
        if spec.low_rank:
            alpha, gate = p.matmul(alpha, matrix(f"{blk}.ssm_f_b.weight")), p.matmul(gate, matrix(f"{blk}.ssm_g_b.weight"))
        beta = gates.columns(2 * width, sizes.all_heads)
        qkv = p.causal_conv(qkv, sizes.conv_width, state, *(vector(f"{blk}.ssm_conv1d_{name}.weight") for name in "qkv"))
        decay, bias = vector(f"{blk}.ssm_a"), vector(f"{blk}.ssm_dt.bias")
        h = p.gated_delta(qkv, beta, alpha, decay, bias, heads, sizes.conv_width, L2_EPSILON, state)
        return p.gated_rms_norm(h, gate, vector(f"{blk}.ssm_norm.weight"), spec.epsilon, by_sigmoid=True)

    return delta


def delta_forward(
    p: "Ops", spec: DeltaSpec, split: Split, weights: Weights, caches: Sequence[LayerCache | LayerState]
) -> None:  # fmt: skip
    latent, linear = latent_attention(p, spec, split, weights), linear_attention(p, spec, split, weights)

    def attention(blk: str, h: Value, cache: LayerCache | LayerState) -> Value:
        if isinstance(cache, LayerState):
            return linear(blk, h, cache)
        made = latent(blk, h, cache)
        return p.head_gate(made, p.matmul(h, weights.matrix(f"{blk}.attn_gate.weight")), split.heads) if spec.gated else made

    mixture_forward(p, spec, split, weights, caches, attention)


# ---------------------------------------------------------------- folders


def either(*keys: str) -> Callable[[Config], Any]:
    """What released folders and transformers call a key."""
    return lambda config: next((config[key] for key in keys if config.get(key) is not None), None)


def linear_key(theirs: str, key: str) -> Callable[[Config], Any]:
    """Of linear attention: released folders have it in a table of its own."""

    def read(config: Config) -> Any:
        return (config.get("linear_attn_config") or {}).get(theirs, config[key])

    return read


def alike_heads(config: Config) -> int:
    """GGUF has one number for both kinds of attention."""
    heads, linear = config["num_attention_heads"], linear_key("num_heads", "linear_num_heads")(config)
    if heads != linear:
        raise CannotComputeError(f"has {heads} heads, and {linear} in linear attention")
    return int(heads)


def delta_tensors(place: str = LAYER) -> dict[str, str]:
    """Of linear attention, but for what gives decays and gates. place: what a folder calls a layer's attention."""
    return (
        {f"blk.{{layer}}.attn_{name}.weight": f"{place}.{name}_proj.weight" for name in "kv"}
        | {f"blk.{{layer}}.ssm_conv1d_{name}.weight": f"{place}.{name}_conv1d.weight" for name in "qkv"}
        | {
            "blk.{layer}.ssm_beta.weight": f"{place}.b_proj.weight",
            "blk.{layer}.ssm_dt.bias": f"{place}.dt_bias",
            "blk.{layer}.ssm_norm.weight": f"{place}.o_norm.weight",
        }
    )
