"""Gemma 3 (text): most layers see a window of tokens and rotate by a base of their own; the results of attention and feed-forward
are normalised before they are added. GGUF has 1 added to the norms' weights.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from numatp.files.folder import rope_differs, rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import AROUND_BLOCKS, ATTENTION, CONFIG, ENDS, FFN, ONLY, layer_types, plus_one, rotation
from numatp.models.rope import plain, read_base
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_cap,
    read_common,
    read_ffn,
    read_score_scale,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

LAYERS_OF_27B = 62  # the one size whose scores are not divided by the square root of the head size; files do not say so


def _window_base(config: Config) -> Any:
    """Of layers with a window; in older folders a key of its own."""
    if not rope_differs(config):
        return config["rope_local_base_freq"]
    rope = rope_parameters(config, "sliding_attention")
    if rope["rope_type"] != "default":
        raise CannotComputeError("scales the rotation of layers with a window ('rope_parameters')")
    return config["rope_parameters"]["sliding_attention"].get("rope_theta", config["rope_local_base_freq"])


HUGGING_FACE = HuggingFace(
    classes={
        "Gemma3ForCausalLM": {
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        },
    },
    config=CONFIG
    | rotation("full_attention")
    | {
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": layer_types("sliding_attention", "sliding_window_pattern"),
        "attention.scale": lambda config: config["query_pre_attn_scalar"] ** -0.5,
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.freq_base_swa": _window_base,
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | AROUND_BLOCKS
    | {
        "output_norm.weight": plus_one("model.norm.weight"),
        "blk.{layer}.attn_q_norm.weight": plus_one("model.layers.{layer}.self_attn.q_norm.weight"),
        "blk.{layer}.attn_k_norm.weight": plus_one("model.layers.{layer}.self_attn.k_norm.weight"),
    },
    only=ONLY
    | {
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    tied=True,
    ropes=True,
    texts={
        "gemma3_text": ("Gemma3ForCausalLM", {
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        }),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Gemma3Spec(Spec):
    window_base: float  # of the rotation in layers that see a window
    score_scale: float
    logit_cap: float  # 0: none


def read_spec(file: ModelFile) -> Gemma3Spec:
    sizes = read_sizes(file, **read_ffn(file))
    layers = read_windows(file, sizes, period=6)  # of six layers the last sees all tokens
    return read_common(
        file, Gemma3Spec, sizes=sizes, layers=layers, window_base=read_base(file, "gemma3.rope.freq_base_swa"),
        score_scale=read_score_scale(file, sizes, by_width=len(layers) == LAYERS_OF_27B),
        logit_cap=read_cap(file, "final_logit_softcapping"),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *HEAD_NORM_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("post_attention_norm.weight", "width"),
            Rule.vector("ffn_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
            Rule.vector("post_ffw_norm.weight", "width"),
        ),
    )


def forward(p: "Ops", spec: Gemma3Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    all_angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    window_angles = p.rotation(plain(spec.window_base, 2 * len(spec.rope.frequencies)))
    x = p.embed(matrix("token_embd.weight"), split.vocab.start, scale=sqrt(sizes.width))
    for layer, cache in p.layers(caches):
        blk, angles = f"blk.{layer}", all_angles if cache.sees_all else window_angles
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, spec.score_scale, cache)
        out, after = matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.post_attention_norm.weight")
        x = p.add_normalized_product(x, h, out, after, epsilon)
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), epsilon)
        h = p.gelu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_normalized_product(x, h, matrix(f"{blk}.ffn_down.weight"), vector(f"{blk}.post_ffw_norm.weight"), epsilon)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start, cap=spec.logit_cap)
