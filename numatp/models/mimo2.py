"""MiMo-V2-Flash and V2.5 (text): routed experts (routed.py); values have fewer numbers than keys. Most layers see a window of
tokens, with more KV heads, a rotation of their own, and a sink: one more token that takes a part of the softmax and gives nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from numatp.files.folder import rope_differs, rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.layers import Attention
from numatp.models.names import ATTENTION, ENDS, EXPERTS, FFN, ONLY, layer_types
from numatp.models.rope import plain, read_base, read_rope
from numatp.models.routed import (
    FFN_NORM,
    ROUTED_CONFIG,
    SIGMOID,
    MixtureSpec,
    Style,
    dense_layers_listed,
    feed_forward_sizes,
    gate_of,
    mixture_forward,
    mixture_rules,
    read_mixture,
)
from numatp.models.spec import check_heads, read_kv_heads, read_vocab
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Shared, Sizes, Split, cut_heads, cut_rows

if TYPE_CHECKING:
    from numatp.program.ops import Ops

STYLE = Style(routers_tell=True, normalized=True)
PERIOD = 6  # of six layers the last sees all tokens, and the very first, where a folder does not say
FULL, WINDOW = "full_attention", "sliding_attention"
# Where config.json says nothing of the rotation.
ROPE = {FULL: 5000000.0, WINDOW: 10000.0}
PART = 0.334  # of a head's values that turn


def _slides(config: Config) -> list[int]:
    """As numbers, which GGUF files have there. Released folders have them too."""
    flags = layer_types(WINDOW)(config)
    if flags is None:
        flags = config.get("hybrid_layer_pattern")
    if flags is None:
        flags = [layer > 0 and (layer + 1) % PERIOD != 0 for layer in range(config["num_hidden_layers"])]
    return [int(flag) for flag in flags]


def _kv_heads(config: Config) -> list[int]:
    heads = config["num_key_value_heads"]
    return [config.get("swa_num_key_value_heads", 2 * heads) if slides else heads for slides in _slides(config)]


def _window(config: Config) -> Any:
    """`sliding_window_size` counts the tokens before a row's own."""
    before = config.get("sliding_window_size")
    return config["sliding_window"] if before is None else before + 1


def _dense_layers(config: Config) -> int:
    freq = config.get("moe_layer_freq")
    if config.get("mlp_layer_types") is None and freq is not None:
        return dense_layers_listed(config | {"mlp_layer_types": ["sparse" if one else "dense" for one in freq]})
    return dense_layers_listed(config)


def _rope(config: Config, layers: str) -> Config:
    if rope_differs(config):
        rope = {"partial_rotary_factor": PART} | rope_parameters(config, layers)
    elif config.get("rope_parameters"):
        raise CannotComputeError("rotates all kinds of layers alike ('rope_parameters')")
    else:
        rope = rope_parameters(config) | {"rope_theta": ROPE[layers], "partial_rotary_factor": PART}
        if config.get("swa_rope_theta"):  # as released
            rope["rope_theta"] = config["rope_theta"] if layers == FULL else config["swa_rope_theta"]
            rope["partial_rotary_factor"] = config.get("partial_rotary_factor", PART)
    if rope["rope_type"] != "default" or "rope_theta" not in rope:
        raise CannotComputeError(f"scales the rotation by {rope['rope_type']!r} ('rope_parameters')")
    return rope


def _base(layers: str) -> Callable[[Config], Any]:
    return lambda config: _rope(config, layers)["rope_theta"]


def _rotated(config: Config) -> int:
    full, window = (int(config["head_dim"] * _rope(config, layers)["partial_rotary_factor"]) for layers in (FULL, WINDOW))
    if full != window:
        raise CannotComputeError(f"turns {full} values of a head in some layers and {window} in others ('partial_rotary_factor')")
    return full


HUGGING_FACE = HuggingFace(
    classes={
        "MiMoV2FlashForCausalLM": {
            "head_dim": 192, "v_head_dim": 128, "sliding_window": 129, "attention_value_scale": 0.707, "n_group": 1,
            "topk_group": 1, "rms_norm_eps": 1e-5,
        },
    },
    config=ROUTED_CONFIG
    | {
        "attention.head_count_kv": _kv_heads,
        "attention.value_length": "v_head_dim",
        "attention.value_scale": lambda config: 1.0 if config["attention_value_scale"] is None else config["attention_value_scale"],
        "attention.sliding_window": _window,
        "attention.sliding_window_pattern": _slides,
        "attention.layer_norm_rms_epsilon": lambda config: config.get("layernorm_epsilon", config["rms_norm_eps"]),
        "expert_shared_count": lambda config: None,
        "expert_gating_func": lambda config: gate_of(config) or SIGMOID,
        "expert_weights_scale": lambda config: config.get("routed_scaling_factor") or 1.0,
        "leading_dense_block_count": _dense_layers,
        "rope.dimension_count": _rotated,
        "rope.freq_base": _base(FULL),
        "rope.freq_base_swa": _base(WINDOW),
        "rope.scaling.type": lambda config: "none",
        "rope.scaling.factor": lambda config: None,
        "rope.scaling.yarn_attn_factor": lambda config: None,
        "rope.scaling.yarn_truncate": lambda config: None,
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | EXPERTS
    | FFN_NORM
    | {
        "blk.{layer}.attn_sinks.weight": "model.layers.{layer}.self_attn.attention_sink_bias",
        "blk.{layer}.exp_probs_b.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    },
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False, "n_shared_experts": None, "norm_topk_prob": True, "topk_method": "noaux_tc"},
    further=("model.mtp.*",),
    ropes=None,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mimo2Spec(MixtureSpec):
    window_base: float  # of the rotation in layers that see a window
    slides: tuple[bool, ...]  # per layer: whether it sees a window
    full_sinks: bool  # whether layers that see all tokens have sinks
    window_sinks: bool  # whether the others do


def read_spec(file: ModelFile) -> Mimo2Spec:
    width, heads = file.count("mimo2.embedding_length"), file.count_of_layers("mimo2.attention.head_count")
    size, value_size = file.count("mimo2.attention.key_length"), file.count("mimo2.attention.value_length")
    slides = _read_pattern(file)
    window, full = read_kv_heads(file, slides)
    for one in (full, window):
        check_heads(file, width, heads, one, size)
        check_heads(file, width, heads, one, value_size)
    sizes = Sizes(
        width=width, heads=cut_heads(heads, value_size), kv_heads=Shared(window, "heads", heads // window),
        full_kv_heads=Shared(full, "heads", heads // full), head_size=size, value_size=value_size, vocab=cut_rows(read_vocab(file)),
        **feed_forward_sizes(file, STYLE),
    )  # fmt: skip
    seen = file.count("mimo2.attention.sliding_window")
    sees_all, sees_window = Attention(size, value_size, heads="full_kv_heads"), Attention(size, value_size, seen)
    with_sinks = {flag for layer, flag in enumerate(slides) if f"blk.{layer}.attn_sinks.weight" in file.tensors}
    rope = read_rope(file, size)
    return read_mixture(
        file, Mimo2Spec, STYLE, sizes, layers=tuple(sees_window if flag else sees_all for flag in slides), rope=rope,
        window_base=read_base(file, "mimo2.rope.freq_base_swa", default=read_base(file, "mimo2.rope.freq_base")),
        attended_scale=file.number("mimo2.attention.value_scale", default=1.0) or 1.0, slides=tuple(slides),
        full_sinks=False in with_sinks, window_sinks=True in with_sinks,
    )  # fmt: skip


def _read_pattern(file: ModelFile) -> list[bool]:
    """Per layer: whether it sees a window."""
    numbers, layers = file.integers("mimo2.attention.sliding_window_pattern"), file.count("mimo2.block_count")
    if len(numbers) != layers:
        file.fail(f"has {layers} layers and {len(numbers)} values of 'mimo2.attention.sliding_window_pattern'; convert it again")
    return [bool(number) for number in numbers]


def rules(spec: Mimo2Spec) -> list[Rule]:
    def attention(layer: int) -> list[Rule]:
        slides = spec.slides[layer]
        listed = [
            Rule.matrix("attn_q.weight", "heads*head_size", "width"),
            Rule.matrix("attn_k.weight", "kv_heads*head_size", "width"),
            Rule.matrix("attn_v.weight", "kv_heads*value_size", "width"),
        ]
        if spec.window_sinks if slides else spec.full_sinks:
            listed.append(Rule.vector("attn_sinks.weight", "heads"))
        listed.append(Rule.matrix("attn_output.weight", "width", "heads*value_size"))
        return listed if slides else [rule.in_words(kv_heads="full_kv_heads") for rule in listed]

    return mixture_rules(spec, attention)


def forward(p: "Ops", spec: Mimo2Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    full_heads = Heads(split.heads, split.full_kv_heads, sizes.heads // sizes.full_kv_heads, sizes.head_size)
    window_heads = Heads(split.heads, split.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_size)
    full_angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    window_angles = p.rotation(plain(spec.window_base, 2 * len(spec.rope.frequencies)))

    def attention(blk: str, h: Value, cache: LayerCache) -> Value:
        heads, angles, sunk = full_heads, full_angles, spec.full_sinks
        if not cache.sees_all:
            heads, angles, sunk = window_heads, window_angles, spec.window_sinks
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False, value_size=sizes.value_size)
        sinks = vector(f"{blk}.attn_sinks.weight") if sunk else None
        return p.attention(qkv, heads, 1 / sqrt(heads.size), cache, sinks, value_size=sizes.value_size)

    mixture_forward(p, spec, split, weights, caches, attention)
