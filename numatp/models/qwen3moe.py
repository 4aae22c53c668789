"""Qwen3 with experts (Qwen3-30B-A3B, Qwen3-235B-A22B): as Qwen3, where each row goes through a few of many FFNs."""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, EXPERTS, MIXTURE, NO_WINDOWS, ONLY, USE_WINDOW, windows
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    HEAD_NORM_RULES,
    QKV_RULES,
    ROUTER_RULE,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_sizes,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = HuggingFace(
    classes={"Qwen3MoeForCausalLM": {"rms_norm_eps": 1e-6, "norm_topk_prob": False, **USE_WINDOW}},
    config=CONFIG | MIXTURE | windows(lambda config, layer: True, listed=False),
    tensors=ENDS
    | ATTENTION
    | EXPERTS
    | {
        "blk.{layer}.attn_q_norm.weight": "model.layers.{layer}.self_attn.q_norm.weight",
        "blk.{layer}.attn_k_norm.weight": "model.layers.{layer}.self_attn.k_norm.weight",
        "blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    },
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    unwritten=NO_WINDOWS,
    texts={"qwen3_moe": ("Qwen3MoeForCausalLM", {})},
)  # fmt: skip


@dataclass(frozen=True)
class MixtureSpec(Spec):
    normalize: bool  # whether their shares are made to add up to 1


def read_spec(file: ModelFile) -> MixtureSpec:
    return read_common(
        file, MixtureSpec, sizes=read_sizes(file, **read_experts(file)),
        experts_used=file.count("qwen3moe.expert_used_count"), normalize=file.flag("qwen3moe.expert_weights_norm", default=True),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *HEAD_NORM_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            ROUTER_RULE,
            *EXPERT_GATE_UP_RULES,
            EXPERT_DOWN_RULE,
        ),
    )


def forward(p: "Ops", spec: MixtureSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
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
        routes = p.route(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, spec.normalize)
        gate, up = (matrix(f"{blk}.ffn_{name}_exps.weight") for name in ("gate", "up"))
        h = p.silu_gate(p.expert_matmul(h, routes, gate, up))
        x = p.add_experts(x, h, routes, matrix(f"{blk}.ffn_down_exps.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
