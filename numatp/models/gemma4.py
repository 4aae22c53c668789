"""Gemma 4 (text; 12B, 26B-A4B and 31B): most layers see a window of tokens, the others have heads of another size, of which a part
rotates, and may take keys as values. Values are normalised, scores are not scaled, and each layer's result is multiplied by a
number. In models with experts all rows go through a feed-forward network too: both results are normalised, added up, and
normalised again.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace, HuggingFaceFile, Stored
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.layers import Attention
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY, TOGETHER
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
    read_pattern,
    read_vocab,
)
from numatp.program.values import Heads, LayerCache, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Shared, Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

PERIOD = 6  # of six layers the last sees all tokens, where a folder does not say
STILL = 1e30  # what the frequencies of pairs that do not turn are divided by, in GGUF


def _slides(config: Config) -> list[bool]:
    """The last layer sees all tokens, whatever config.json says."""
    kinds = config.get("layer_types") or [
        "full_attention" if (layer + 1) % PERIOD == 0 else "sliding_attention" for layer in range(config["num_hidden_layers"])
    ]
    others = set(kinds) - {"sliding_attention", "full_attention"}
    if others:
        raise CannotComputeError(f"has layers of kind '{min(others)}' ('layer_types')")
    return [kind == "sliding_attention" for kind in kinds[:-1]] + [False]


def _of_full(config: Config, key: str, otherwise: Any) -> Any:
    """A size of layers that see all tokens. Newer folders say for each layer in what it differs from the others."""
    layers = config.get("per_layer_config")
    if layers is None:
        return otherwise
    values = {layer: of_layer.get(key, config[key]) for layer, of_layer in layers.items()}
    flags = _slides(config)
    wanted = {values.get(str(layer), config[key]) for layer, slides in enumerate(flags) if not slides}
    others = {values.get(str(layer), config[key]) for layer, slides in enumerate(flags) if slides}
    if len(wanted) != 1 or others - {config[key]} or {name for one in layers.values() for name in one} - PER_LAYER:
        raise CannotComputeError("has layers with sizes of their own ('per_layer_config')")
    return wanted.pop()


PER_LAYER = {"head_dim", "num_key_value_heads"}


def _kv_heads(config: Config) -> Any:
    shared = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    full = _of_full(config, "num_key_value_heads", shared or config["num_key_value_heads"])
    if full == config["num_key_value_heads"]:
        return full
    return [config["num_key_value_heads"] if slides else full for slides in _slides(config)]


def _head_size(config: Config) -> Any:
    return _of_full(config, "head_dim", config["global_head_dim"])


def _base(layers: str, *kinds: str) -> Any:
    def read(config: Config) -> Any:
        rope = _rope(config, layers)
        if rope["rope_type"] not in kinds:
            raise CannotComputeError(f"scales the rotation of some layers by '{rope['rope_type']}' ('rope_parameters')")
        return rope.get("rope_theta")

    return read


def _rope(config: Config, layers: str) -> Config:
    return rope_parameters(config if config.get("rope_parameters") else config | {"rope_parameters": ROPES}, layers)


def _causal(config: Config) -> Any:
    if config.get("use_bidirectional_attention") == "all":
        raise CannotComputeError("lets tokens see those behind them ('use_bidirectional_attention')")
    return config["sliding_window"]


def _turning(file: HuggingFaceFile) -> np.ndarray | None:
    """What the frequencies of layers that see all tokens are divided by: "proportional" turns the first pairs."""
    rope, pairs = _rope(file.config, "full_attention"), file.count("gemma4.attention.key_length") // 2
    if rope["rope_type"] != "proportional":
        return None
    part, factor = rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0)
    turned = int(part * 2 * pairs // 2)
    if not 0 <= turned <= pairs or not factor >= 1:
        file.fail(f"turns {part} of a head's values, {factor} times slower; download the folder again")
    return np.where(np.arange(pairs) < turned, factor, STILL).astype(np.float32)


def _experts(key: str) -> Any:
    return lambda config: config[key] if config.get("enable_moe_block") else None


ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
LAYER = "model.layers.{layer}"
HUGGING_FACE = HuggingFace(
    classes={
        "Gemma4ForCausalLM": {
            "sliding_window": 512, "rms_norm_eps": 1e-6, "global_head_dim": 512, "hidden_size_per_layer_input": 256,
        },
    },
    config=CONFIG
    | {
        "attention.head_count_kv": _kv_heads,
        "attention.key_length": _head_size,
        "attention.value_length": _head_size,
        "attention.key_length_swa": "head_dim",
        "attention.value_length_swa": "head_dim",
        "attention.sliding_window": _causal,
        "attention.sliding_window_pattern": _slides,
        "attention.shared_kv_layers": lambda config: config.get("num_kv_shared_layers") or 0,
        "embedding_length_per_layer_input": lambda config: config.get("hidden_size_per_layer_input") or 0,
        "expert_count": _experts("num_experts"),
        "expert_used_count": _experts("top_k_experts"),
        "expert_feed_forward_length": _experts("moe_intermediate_size"),
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.dimension_count": _head_size,
        "rope.dimension_count_swa": "head_dim",
        "rope.freq_base": _base("full_attention", "proportional", "default"),
        "rope.freq_base_swa": _base("sliding_attention", "default"),
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | {f"blk.{{layer}}.attn_{name}_norm.weight": f"{LAYER}.self_attn.{name}_norm.weight" for name in "qk"}
    | {
        f"blk.{{layer}}.{ours}.weight": f"{LAYER}.{theirs}.weight"
        for ours, theirs in (
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
            ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
            ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
            ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
        )
    }
    | {
        "blk.{layer}.layer_output_scale.weight": f"{LAYER}.layer_scalar",
        "blk.{layer}.ffn_gate_inp.weight": f"{LAYER}.router.proj.weight",
        "blk.{layer}.ffn_gate_inp.scale": f"{LAYER}.router.scale",
        "blk.{layer}.ffn_down_exps.scale": f"{LAYER}.router.per_expert_scale",
    }
    | {
        f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(f"{LAYER}.experts.{theirs}", order=rows)
        for name, (theirs, rows) in TOGETHER.items()
    },
    computed={"rope_freqs.weight": _turning},
    only=ONLY | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    tied=True,
    ropes=True,
    texts=dict.fromkeys(
        ("gemma4_text", "gemma4_unified_text"),
        ("Gemma4ForCausalLM", {
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        }),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Gemma4Spec(Spec):
    window_base: float  # of the rotation in layers that see a window
    logit_cap: float  # 0: none
    divided: bool  # whether the frequencies of the other layers are divided by a tensor
    slides: tuple[bool, ...]  # per layer: whether it sees a window
    from_keys: tuple[bool, ...]  # per layer: whether its keys are its values too
    mixture: bool  # whether layers have experts too


def read_spec(file: ModelFile) -> Gemma4Spec:
    for key, what in (
        ("embedding_length_per_layer_input", "an embedding of its own for each layer"),
        ("attention.shared_kv_layers", "layers that read the keys and values of others"),
    ):
        if file.integer(f"gemma4.{key}", default=0):
            file.fail(f"has {what} (E2B, E4B), which numatp cannot compute; use another model")
    flags = read_pattern(file, "attention.sliding_window_pattern", PERIOD)
    mixture = file.integer("gemma4.expert_count", default=0) > 0
    width, heads = file.count("gemma4.embedding_length"), file.count_of_layers("gemma4.attention.head_count")
    size, full_size = file.count("gemma4.attention.key_length_swa"), file.count("gemma4.attention.key_length")
    kv_heads, full_kv_heads = _read_kv_heads(file, flags)
    check_heads(file, width, heads, kv_heads, size)
    check_heads(file, width, heads, full_kv_heads, full_size)
    sizes = decoder_sizes(
        width, heads, kv_heads, size, read_vocab(file), **read_ffn(file), **(read_experts(file) if mixture else {}),
        full_size=full_size, full_kv_heads=Shared(full_kv_heads, "heads", heads // full_kv_heads),
    )  # fmt: skip
    window = file.count("gemma4.attention.sliding_window")
    full = Attention(full_size, full_size, heads="full_kv_heads")
    return read_common(
        file, Gemma4Spec, sizes=sizes, layers=tuple(Attention(size, size, window) if slides else full for slides in flags),
        rope=read_rope(file, full_size), window_base=read_base(file, "gemma4.rope.freq_base_swa"),
        logit_cap=read_cap(file, "final_logit_softcapping"), divided=read_factors(file),
        slides=tuple(flags), from_keys=tuple(
            f"blk.{layer}.attn_v.weight" not in file.tensors and f"blk.{layer}.attn_qkv.weight" not in file.tensors
            for layer in range(len(flags))
        ),
        mixture=mixture, layer_exchanges=3 if mixture else 2,
        experts_used=file.count("gemma4.expert_used_count") if mixture else 0,
    )  # fmt: skip


def _read_kv_heads(file: ModelFile, flags: list[bool]) -> tuple[int, int]:
    """Of layers with a window, and of the others."""
    key = "gemma4.attention.head_count_kv"
    if not file.is_list(key):
        return file.count(key), file.count(key)
    numbers = file.integers(key)
    found = [{number for number, slides in zip(numbers, flags, strict=False) if slides == kind} for kind in (True, False)]
    if len(numbers) != len(flags) or any(len(kind) > 1 or min(kind, default=1) < 1 for kind in found):
        file.fail(f"metadata '{key}' is not one number for each kind of layers; convert the model again")
    one, other = (kind.pop() if kind else 1 for kind in found)
    return one, other


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

    def layer_rules(layer: int) -> list[Rule]:
        attention = (*(QKV_RULES[:2] if spec.from_keys[layer] else QKV_RULES), *HEAD_NORM_RULES, ATTENTION_OUTPUT_RULE)
        return [
            Rule.vector("attn_norm.weight", "width"),
            *(attention if spec.slides[layer] else map(full, attention)),
            Rule.vector("post_attention_norm.weight", "width"),
            Rule.vector("ffn_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
            *(experts if spec.mixture else ()),
            Rule.vector("post_ffw_norm.weight", "width"),
            Rule.vector("layer_output_scale.weight", "1"),
        ]

    listed = decoder_rules(spec, layer_rules)
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
        parts = [matrix(f"{blk}.attn_{name}.weight") for name in ("qk" if from_keys else "qkv")]
        qkv = p.matmul(h, *parts, room=len(heads.keys) * heads.size if from_keys else 0)
        qkv = p.rms_norm_values(qkv, heads, epsilon, from_keys)
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        return p.attention(qkv, heads, 1.0, cache)

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
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        scale = float(weights.floats(f"{blk}.layer_output_scale.weight")[0])
        h = attention(layer, p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon), cache)
        out, after = matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.post_attention_norm.weight")
        x = p.add_normalized_product(x, h, out, after, epsilon)
        after = vector(f"{blk}.post_ffw_norm.weight")
        if spec.mixture:
            x = p.add_normalized(x, mixture(blk, x), after, epsilon, scale)
        else:
            x = p.add_normalized_product(x, feed_forward(blk, x), matrix(f"{blk}.ffn_down.weight"), after, epsilon, scale)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start, cap=spec.logit_cap)
