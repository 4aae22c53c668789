"""Qwen3 without experts: as Llama, with a norm for each query and key head, a head size of its own and rotation by halves."""

from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, NO_WINDOWS, ONLY, USE_WINDOW, above_max_window_layers, windows
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_common,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = HuggingFace(
    classes={"Qwen3ForCausalLM": {"rms_norm_eps": 1e-6, **USE_WINDOW}},
    config=CONFIG | windows(above_max_window_layers),
    tensors=ENDS
    | ATTENTION
    | FFN
    | {
        "blk.{layer}.attn_q_norm.weight": "model.layers.{layer}.self_attn.q_norm.weight",
        "blk.{layer}.attn_k_norm.weight": "model.layers.{layer}.self_attn.k_norm.weight",
        "blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    },
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False},
    unwritten=NO_WINDOWS,
    texts={
        "qwen3": ("Qwen3ForCausalLM", {
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 22016,
            "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
        }),
        "qwen3_vl_text": ("Qwen3ForCausalLM", {"head_dim": 128, "rope_theta": 500000.0}),
    },
)  # fmt: skip


def read_spec(file: ModelFile) -> Spec:
    return read_common(file, Spec)


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *HEAD_NORM_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
        ),
    )


def forward(p: "Ops", spec: Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        qkv = p.rms_norm_heads(qkv, heads, q_norm, k_norm, spec.epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        h = p.silu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
