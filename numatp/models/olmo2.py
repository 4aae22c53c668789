"""OLMo 2 and 3: the results of attention and feed-forward are normalised before they are added, their inputs are not; queries, and
keys, are normalised over all heads together. In OLMo 3 most layers see a window of tokens, and do not scale the rotation.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from numatp.files.folder import rope_differs, rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY, layer_types, rotation
from numatp.models.rope import plain, read_base
from numatp.models.routed import NORM_OF_ALL_RULES
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_ffn,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

PERIOD = 4  # of four layers the last sees all tokens, where a folder does not say
THETA = 500000.0  # which transformers 5 takes for layers with a window in older folders of OLMo 3, whatever these say


def _slides(config: Config) -> bool:
    return bool(config["architectures"] == ["Olmo3ForCausalLM"])


def _window(config: Config) -> Any:
    """OLMo 2 has none, whatever config.json says."""
    if _slides(config) and config["sliding_window"] is None:
        raise CannotComputeError("has no window ('sliding_window')")
    return config["sliding_window"] if _slides(config) else None


def _pattern(config: Config) -> Any:
    if not _slides(config):
        return None
    flags = layer_types("sliding_attention")(config)
    return [(layer + 1) % PERIOD != 0 for layer in range(config["num_hidden_layers"])] if flags is None else flags


def _base(layers: str) -> Any:
    """Each kind of layers has parameters of its own in newer folders of OLMo 3, and one scales by others than it says elsewhere."""

    def read(config: Config) -> Any:
        if config.get("rope_parameters") and rope_differs(config) != _slides(config):
            which = "rotates all kinds of layers alike" if _slides(config) else "gives each kind of layers a rotation of its own"
            raise CannotComputeError(f"{which} ('rope_parameters')")
        rope = rope_parameters(config, layers)
        if layers == "sliding_attention" and rope_differs(config) and rope["rope_type"] != "default":
            raise CannotComputeError("scales the rotation of layers with a window ('rope_parameters')")
        if _slides(config) and not rope_differs(config) and rope["rope_theta"] != THETA:
            raise CannotComputeError("has a base of the rotation that layers with a window may not share ('rope_theta')")
        return rope.get("rope_theta")

    return read


HUGGING_FACE = HuggingFace(
    classes={
        "Olmo2ForCausalLM": {"rms_norm_eps": 1e-5},
        "Olmo3ForCausalLM": {"rms_norm_eps": 1e-5, "rope_theta": THETA, "sliding_window": 4096},
    },
    config=CONFIG
    | rotation("full_attention")
    | {
        "attention.sliding_window": _window,
        "attention.sliding_window_pattern": _pattern,
        "rope.freq_base": _base("full_attention"),
        "rope.freq_base_swa": _base("sliding_attention"),
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | {f"blk.{{layer}}.attn_{name}_norm.weight": f"model.layers.{{layer}}.self_attn.{name}_norm.weight" for name in "qk"}
    | {
        "blk.{layer}.post_attention_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
        "blk.{layer}.post_ffw_norm.weight": "model.layers.{layer}.post_feedforward_layernorm.weight",
    },
    only=ONLY | {"hidden_act": "silu", "attention_bias": False},
    ropes=None,
)


@dataclass(frozen=True)
class Olmo2Spec(Spec):
    window_base: float  # of the rotation in layers that see a window


def read_spec(file: ModelFile) -> Olmo2Spec:
    sizes = read_sizes(file, **read_ffn(file))
    more: dict[str, Any] = {}
    if file.integer("olmo2.attention.sliding_window", default=0):
        more["layers"] = read_windows(file, sizes, period=PERIOD)
    base = read_base(file, "olmo2.rope.freq_base")
    window_base = read_base(file, "olmo2.rope.freq_base_swa", default=base)
    return read_common(file, Olmo2Spec, sizes=sizes, window_base=window_base, layer_exchanges=3, **more)


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            *QKV_RULES,
            *NORM_OF_ALL_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("post_attention_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
            Rule.vector("post_ffw_norm.weight", "width"),
        ),
    )


def forward(p: "Ops", spec: Olmo2Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    all_angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    window_angles = p.rotation(plain(spec.window_base, 2 * len(spec.rope.frequencies)))
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk, angles = f"blk.{layer}", all_angles if cache.sees_all else window_angles
        qkv = p.matmul(x, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_all_heads(qkv, heads, sizes.heads, q_norm, k_norm, epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        out, after = matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.post_attention_norm.weight")
        x = p.add_normalized_product(x, h, out, after, epsilon)
        h = p.silu_gate(p.matmul(x, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_normalized_product(x, h, matrix(f"{blk}.ffn_down.weight"), vector(f"{blk}.post_ffw_norm.weight"), epsilon)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
