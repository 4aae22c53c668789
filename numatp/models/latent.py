"""What DeepSeek-V2 and V3, Kimi K2, GLM-4.7-Flash and Mistral 4 have in common: latent attention, and experts routed in groups
(routed.py). Of each token one normalised row and a rotated key are kept, the same on every rank; heads read them through their own
matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import CannotComputeError, Stored, numbered_rows
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.kernels.layout import MAX_HEAD_SIZE
from numatp.models.layers import Attention, Layer
from numatp.models.names import ENDS, EXPERTS, FFN, ONLY, Keys, attention_factor
from numatp.models.rope import read_rope
from numatp.models.routed import (
    FFN_NORM,
    ROUTED_CONFIG,
    SHARED_EXPERTS,
    SIGMOID,
    SOFTMAX,
    MixtureSpec,
    Style,
    feed_forward_sizes,
    gate_of,
    mixture_forward,
    mixture_rules,
    read_mixture,
)
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import COLUMN_UNIT, Cut, Shared, Sizes, Split, cut_heads, cut_rows

if TYPE_CHECKING:
    from numatp.program.ops import Ops

STYLE = Style(gate=SOFTMAX, bias_may_lack=True)


@dataclass(frozen=True, kw_only=True)
class LatentSpec(MixtureSpec):
    low_rank_queries: bool
    heat: tuple[float, int]  # queries are multiplied by 1 + the first * log(1 + position // the second)


LatentKind = TypeVar("LatentKind", bound=LatentSpec)
# choose(block, h, low, angles, cache): the tokens that rows see (choose_tokens), None: all; h: normalised rows, low: what their
# queries are made of.
Choose = Callable[[str, Value, Value, Value, LayerCache], Value | None]


def _style(file: ModelFile) -> Style:
    """Files of GLM-4.7-Flash do not say that it routes by sigmoids: llama.cpp knows it by these numbers."""
    name = file.text("general.architecture")
    embedding = file.tensors.get("token_embd.weight")
    flash = file.count(f"{name}.block_count") in (47, 48) and embedding is not None and embedding.shape[0] == 154880
    return replace(STYLE, gate=SIGMOID) if name == "deepseek2" and flash else STYLE


def _read_heat(file: ModelFile) -> tuple[float, int]:
    name = file.text("general.architecture")
    scale = file.number(f"{name}.attention.temperature_scale", default=0.0)
    if not scale:
        return 0.0, 1
    trained = file.integer(f"{name}.rope.scaling.original_context_length", default=0)
    length = file.integer(f"{name}.attention.temperature_length", default=0) or trained
    if length < 1:
        file.fail(f"lets queries grow every {length} tokens ('{name}.attention.temperature_length'); convert the model again")
    return scale, length


def read_latent(
    file: ModelFile, kind: type[LatentKind], layer: Callable[[int, Attention], Layer] | None = None,
    more_sizes: Mapping[str, int | Cut] | None = None, style: Style | None = None, **more: Any,
) -> LatentKind:  # fmt: skip
    """layer(number, what it keeps): another kind of layer. `more`: see read_common."""
    name = file.text("general.architecture")

    def count(key: str) -> int:
        return file.count(f"{name}.{key}")

    width, latent = count("embedding_length"), count("attention.kv_lora_rank")
    heads = file.count_of_layers(f"{name}.attention.head_count")
    head_size, value_size = count("attention.key_length_mla"), count("attention.value_length_mla")
    # Those that bring a rotation of their own may turn nothing.
    rotated = file.integer(f"{name}.rope.dimension_count") if "rope" in more else count("rope.dimension_count")
    nope = head_size - rotated
    rank = file.integer(f"{name}.attention.q_lora_rank", default=0)
    largest = max(latent + rotated, head_size, value_size)
    if nope < 1 or largest > MAX_HEAD_SIZE or any(size % COLUMN_UNIT for size in (width, latent, nope, value_size, rank)):
        file.fail(
            f"has heads of {nope} + {rotated} and {value_size} values, rows of {latent} and {rank} for them: numatp computes "
            f"multiples of {COLUMN_UNIT} up to {MAX_HEAD_SIZE}; use another model"
        )
    if rotated < 0 or rotated % 16:
        file.fail(f"rotates {rotated} values of a head, no multiple of 16, which numatp cannot compute; use another model")
    vocab = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    sizes = Sizes(
        width=width, heads=cut_heads(heads, value_size), latent_heads=Shared(1, "heads", heads), head_size=head_size,
        nope=nope, rotated=rotated, value_size=value_size, latent=latent, latent_row=latent + rotated,
        **({"query_rank": rank} if rank else {}),
        vocab=cut_rows(vocab), **feed_forward_sizes(file, STYLE), **(more_sizes or {}),
    )  # fmt: skip
    layers = file.count(f"{name}.block_count", most=max(len(file.tensors), 1))
    rows = Attention(latent + rotated, latent, heads="latent_heads")
    if "rope" not in more:
        more["rope"] = read_rope(file, rotated, multiplies="scores")
    return read_mixture(
        file, kind, style or _style(file), sizes, layers=tuple(layer(number, rows) if layer else rows for number in range(layers)),
        low_rank_queries=rank > 0, heat=_read_heat(file), **more,
    )  # fmt: skip


def latent_rules(spec: LatentSpec, more: Callable[[int], Sequence[Rule]] = lambda layer: ()) -> list[Rule]:
    """more(layer): rules of attention that it has besides."""
    rules = attention_rules(spec)
    return mixture_rules(spec, lambda layer: (*rules[:-1], *more(layer), rules[-1]))


def attention_rules(spec: LatentSpec) -> tuple[Rule, ...]:
    """Those of one layer between its norms."""
    queries: tuple[Rule, ...] = (Rule.matrix("attn_q.weight", "heads*head_size", "width"),)
    if spec.low_rank_queries:
        queries = (
            Rule.matrix("attn_q_a.weight", "query_rank", "width"),
            Rule.vector("attn_q_a_norm.weight", "query_rank"),
            Rule.matrix("attn_q_b.weight", "heads*head_size", "query_rank"),
        )
    return (
        *queries,
        Rule.matrix("attn_kv_a_mqa.weight", "latent_row", "width"),
        Rule.vector("attn_kv_a_norm.weight", "latent"),
        Rule.stacked("attn_k_b.weight", "heads", "latent", "nope"),
        Rule.stacked("attn_v_b.weight", "heads", "value_size", "latent"),
        Rule.matrix("attn_output.weight", "width", "heads*value_size"),
    )


def latent_forward(
    p: "Ops", spec: LatentSpec, split: Split, weights: Weights, caches: list[LayerCache], choose: Choose | None = None
) -> None:
    mixture_forward(p, spec, split, weights, caches, latent_attention(p, spec, split, weights, choose))


def latent_attention(
    p: "Ops", spec: LatentSpec, split: Split, weights: Weights, choose: Choose | None = None
) -> Callable[[str, Value, LayerCache], Value]:
    """As mixture_forward wants it."""
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.latent_heads, sizes.heads, sizes.latent_row)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    routes = p.route_heads(len(split.heads), unabsorbed=choose is None)
    scale = spec.rope.score_scale / sqrt(sizes.head_size)
    first_query = "q_a" if spec.low_rank_queries else "q"

    def attention(blk: str, h: Value, cache: LayerCache) -> Value:
        row, q = p.matmuls(h, *([matrix(f"{blk}.attn_{name}.weight")] for name in ("kv_a_mqa", first_query)))
        p.append_latent(row, vector(f"{blk}.attn_kv_a_norm.weight"), epsilon, sizes.rotated, angles, cache)
        low = h
        if spec.low_rank_queries:
            low = p.rms_norm(q, vector(f"{blk}.attn_q_a_norm.weight"), epsilon)
            q = p.matmul(low, matrix(f"{blk}.attn_q_b.weight"))
        k_b, v_b = matrix(f"{blk}.attn_k_b.weight"), matrix(f"{blk}.attn_v_b.weight")
        queries = p.latent_queries(p.head_matmul(q, sizes.nope, routes, k_b), q, sizes.rotated, angles, routes, spec.heat)
        chosen = choose(blk, h, low, angles, cache) if choose else None
        if chosen is None:
            rows = p.attention(queries, heads, scale, cache, value_size=sizes.latent, routes=routes)
        else:
            rows = p.sparse_attention(queries, heads, scale, cache, chosen, sizes.latent)
        out = p.heads_by_rows(p.head_matmul(rows, sizes.latent, routes, v_b), routes)
        return out if choose else p.attend_unabsorbed(out, q, angles, heads, scale, cache, k_b, v_b, routes, spec.heat)

    return attention


# ---------------------------------------------------------------- folders

LAYER = "model.layers.{layer}.self_attn"


def _turned_keys(file: ModelFile) -> tuple[int, int, int]:
    """Of kv_b_proj, which has a head's rows for keys, then those for values: heads, rows of a head, those for keys."""
    name = file.text("general.architecture")
    heads, key, value = (file.count(f"{name}.attention.{one}") for one in ("head_count", "key_length_mla", "value_length_mla"))
    nope = key - file.integer(f"{name}.rope.dimension_count")
    return heads, nope + value, nope


def _latent_rows(file: ModelFile) -> tuple[np.ndarray, int]:
    name = file.text("general.architecture")
    rows = numbered_rows(file, file.count(f"{name}.attention.head_count"), file.count(f"{name}.attention.kv_lora_rank"))
    return rows, rows.size


def _value_rows(file: ModelFile) -> tuple[np.ndarray, int]:
    heads, both, nope = _turned_keys(file)
    rows = numbered_rows(file, heads, both)
    return rows[:, nope:], rows.size


def _log_multiplier(config: Config) -> float | None:
    """GGUF has a tenth of mscale_all_dim."""
    rope = rope_parameters(config)
    scale = rope.get("mscale_all_dim")
    if scale and rope["rope_type"] not in ("default", "yarn"):
        raise CannotComputeError("scales scores without YaRN ('mscale_all_dim')")
    return 0.1 * scale if scale and rope["rope_type"] == "yarn" else None


def _turned_scale(config: Config) -> Any:
    """Of the turned values by YaRN, which a file that scales scores must say."""
    scale = attention_factor(config, rope_parameters(config))
    rope = rope_parameters(config)
    if scale is None and rope["rope_type"] == "yarn" and rope.get("mscale_all_dim"):
        return 0.1 * log(max(rope["factor"], 1)) + 1
    return scale


def _epsilon(config: Config) -> Any:
    """transformers takes 1e-6 in the norms of queries and latent rows whatever the others have, llama.cpp the same in all: where it
    is small, both are alike.
    """
    epsilon = config["rms_norm_eps"]
    if epsilon > 1e-5:
        raise CannotComputeError(f"has an epsilon of norms above 1e-5 ('rms_norm_eps': {epsilon:g})")
    return epsilon


LATENT_CONFIG: Keys = ROUTED_CONFIG | {
    "attention.head_count_kv": lambda config: 1,
    "attention.key_length": lambda config: config["kv_lora_rank"] + config["qk_rope_head_dim"],
    "attention.value_length": "kv_lora_rank",
    "attention.layer_norm_rms_epsilon": _epsilon,
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.key_length_mla": lambda config: config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
    "attention.value_length_mla": "v_head_dim",
    "rope.dimension_count": "qk_rope_head_dim",
    "rope.scaling.yarn_log_multiplier": _log_multiplier,
    "rope.scaling.yarn_attn_factor": _turned_scale,
    "expert_gating_func": lambda config: gate_of(config) or SIGMOID,
}
LATENT_TENSORS: dict[str, str | Stored] = {
    **ENDS,
    **FFN,
    **EXPERTS,
    **FFN_NORM,
    **SHARED_EXPERTS,
    "blk.{layer}.attn_norm.weight": "model.layers.{layer}.input_layernorm.weight",
    "blk.{layer}.attn_q.weight": f"{LAYER}.q_proj.weight",
    "blk.{layer}.attn_q_a.weight": f"{LAYER}.q_a_proj.weight",
    "blk.{layer}.attn_q_a_norm.weight": f"{LAYER}.q_a_layernorm.weight",
    "blk.{layer}.attn_q_b.weight": f"{LAYER}.q_b_proj.weight",
    "blk.{layer}.attn_kv_a_mqa.weight": f"{LAYER}.kv_a_proj_with_mqa.weight",
    "blk.{layer}.attn_kv_a_norm.weight": f"{LAYER}.kv_a_layernorm.weight",
    "blk.{layer}.attn_k_b.weight": Stored(f"{LAYER}.kv_b_proj.weight", order=_latent_rows, turned=_turned_keys),
    "blk.{layer}.attn_v_b.weight": Stored(f"{LAYER}.kv_b_proj.weight", order=_value_rows),
    "blk.{layer}.attn_output.weight": f"{LAYER}.o_proj.weight",
    "blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
}
LATENT_ONLY = ONLY | {"hidden_act": "silu", "attention_bias": False, "rope_interleave": True}
