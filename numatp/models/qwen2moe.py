"""Qwen2 with experts (Qwen1.5-MoE, Qwen2-57B-A14B): as Qwen2, where each row goes through a few of many FFNs, and through one that
all rows share and a number of their own opens.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import (
    ATTENTION,
    CONFIG,
    ENDS,
    EXPERTS,
    MIXTURE,
    NO_WINDOWS,
    ONLY,
    QKV_BIAS,
    SHARED_EXPERT,
    USE_WINDOW,
    windows,
)
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    QKV_BIAS_RULES,
    QKV_RULES,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_shared_expert,
    read_sizes,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = HuggingFace(
    classes={"Qwen2MoeForCausalLM": {"rms_norm_eps": 1e-6, "norm_topk_prob": False, **USE_WINDOW}},
    # Every second layer, from the first on.
    config=CONFIG | MIXTURE | windows(lambda config, layer: layer % 2 == 0 and layer < config["max_window_layers"]),
    tensors=ENDS
    | ATTENTION
    | QKV_BIAS
    | EXPERTS
    | SHARED_EXPERT
    | {"blk.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight"},
    only=ONLY
    | {"hidden_act": "silu", "qkv_bias": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    unwritten=NO_WINDOWS,
)  # fmt: skip


@dataclass(frozen=True)
class Qwen2MixtureSpec(Spec):
    normalize: bool  # whether their shares are made to add up to 1


def read_spec(file: ModelFile) -> Qwen2MixtureSpec:
    return read_common(
        file, Qwen2MixtureSpec, sizes=read_sizes(file, **read_experts(file), **read_shared_expert(file)),
        experts_used=file.count("qwen2moe.expert_used_count"), normalize=file.flag("qwen2moe.expert_weights_norm", default=False),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *QKV_BIAS_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("ffn_norm.weight", "width"),
            ROUTER_RULE,
            *SHARED_EXPERT_RULES,
            *EXPERT_GATE_UP_RULES,
            EXPERT_DOWN_RULE,
        ),
    )


def forward(p: "Ops", spec: Qwen2MixtureSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        qkv = p.add_bias(qkv, *(vector(f"{blk}.attn_{name}.bias") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        routes = p.route(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, spec.normalize)
        experts, shared_expert = (
            [matrix(f"{blk}.ffn_{name}_{kind}.weight") for name in ("gate", "up")] for kind in ("exps", "shexp")
        )
        made, shared = p.expert_and_shared_matmul(h, routes, experts, shared_expert)
        shared = p.dot_gate(p.silu_gate(shared), h, vector(f"{blk}.ffn_gate_inp_shexp.weight"))
        down, shared_down = matrix(f"{blk}.ffn_down_exps.weight"), matrix(f"{blk}.ffn_down_shexp.weight")
        x = p.add_experts(x, p.silu_gate(made), routes, down, (shared, shared_down))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
