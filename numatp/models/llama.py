"""Llama 1-3, Mistral, SmolLM: pre-norm blocks, grouped-query attention with rotary embedding, SwiGLU."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace, HuggingFaceFile, Stored, numbered_rows
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY, rope_type
from numatp.models.rope import llama3_factors, plain, read_base, read_factors
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_sizes,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops


def _neighbours(heads: str) -> Callable[[ModelFile], tuple[np.ndarray, int]]:
    """Rows of queries or keys: GGUF has the two values that rotate together side by side, folders half a head apart."""

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        sizes = read_sizes(file)
        rows = numbered_rows(file, sizes[heads], 2, sizes.head_size // 2)
        return rows.swapaxes(1, 2).ravel(), rows.size

    return read


def _is_llama3(config: Config) -> bool:
    return bool(rope_parameters(config)["rope_type"] == "llama3")


def _window(config: Config) -> Any:
    """Of Mistral; Llama's class knows no such key, and models with it were trained without."""
    return config.get("sliding_window") if config["architectures"] == ["MistralForCausalLM"] else None


MAX_FACTOR = 1e6  # of a scaling; released ones have 8 and 32


def _rope_factors(file: HuggingFaceFile) -> np.ndarray | None:
    """Llama 3.1's scaling, which GGUF has as a vector and folders as parameters."""
    if not _is_llama3(file.config):
        return None
    factor, low, high = (file.positive(f"llama.rope.scaling.{key}") for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = file.count("llama.rope.scaling.original_context_length")
    if not 1 <= factor <= MAX_FACTOR or low >= high:
        file.fail(f"scales its rotary embedding by {factor:g} between factors {low:g} and {high:g}; download the folder again")
    frequencies = plain(read_base(file, "llama.rope.freq_base"), read_sizes(file).head_size)
    return llama3_factors(frequencies, factor, low, high, trained).astype(np.float32)


SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
HUGGING_FACE = HuggingFace(
    classes={"LlamaForCausalLM": {"rms_norm_eps": 1e-6}, "MistralForCausalLM": {"rms_norm_eps": 1e-6, "sliding_window": 4096}},
    config=CONFIG
    | {
        "attention.sliding_window": _window,
        "rope.scaling.type": lambda config: "none" if _is_llama3(config) else rope_type(rope_parameters(config)),
        "rope.scaling.low_freq_factor": lambda config: rope_parameters(config).get("low_freq_factor"),
        "rope.scaling.high_freq_factor": lambda config: rope_parameters(config).get("high_freq_factor"),
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | {
        "blk.{layer}.attn_q.weight": Stored("model.layers.{layer}.self_attn.q_proj.weight", order=_neighbours("heads")),
        "blk.{layer}.attn_k.weight": Stored("model.layers.{layer}.self_attn.k_proj.weight", order=_neighbours("kv_heads")),
        "blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    },
    computed={"rope_freqs.weight": _rope_factors},
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    texts={
        "llama": ("LlamaForCausalLM", SIZES | {"intermediate_size": 11008, "max_position_embeddings": 2048}),
        "mistral": ("MistralForCausalLM", SIZES | {
            "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8,
        }),
    },
)  # fmt: skip


@dataclass(frozen=True)
class LlamaSpec(Spec):
    divided: bool  # whether the frequencies of the rotation are divided by a tensor, as Llama 3.1's scaling is written in GGUF


def read_spec(file: ModelFile) -> LlamaSpec:
    return read_common(file, LlamaSpec, divided=read_factors(file))


def rules(spec: LlamaSpec) -> list[Rule]:
    listed = decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
        ),
    )
    return [*listed, Rule.vector("rope_freqs.weight", str(len(spec.rope.frequencies)))] if spec.divided else listed


def forward(p: "Ops", spec: LlamaSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    frequencies = spec.rope.frequencies / (weights.floats("rope_freqs.weight") if spec.divided else 1)
    angles = p.rotation(frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=True)
        h = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        h = p.silu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
