"""gpt-oss: experts with biases and a clamped gate, every second layer sees a window of tokens, and attention has a sink: one more
token that takes a part of the softmax and gives nothing.
"""

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.huggingface import HuggingFace, Stored, numbered_rows
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, ONLY, QKV_BIAS, layer_types
from numatp.models.rope import read_rope
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    EXPERT_DOWN_RULE,
    EXPERT_GATE_UP_RULES,
    QKV_BIAS_RULES,
    QKV_RULES,
    ROUTER_RULE,
    Spec,
    decoder_rules,
    read_common,
    read_experts,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

ALPHA, LIMIT = 1.702, 7.0  # of the gate
TRUNCATE = False  # GGUF files do not say so: YaRN's range ends between pairs
# Where config.json says nothing of the rotation.
ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def _rows(first: int, step: int, size: str) -> Callable[[ModelFile], tuple[np.ndarray, int]]:
    """Of every expert the first-th of each `step` rows; `size`: the key of how many there are of these."""

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        experts, height = file.count("gpt-oss.expert_count"), file.count(f"gpt-oss.{size}")
        rows = numbered_rows(file, experts, height, step)
        return rows[..., first], rows.size

    return read


EXPERTS = "model.layers.{layer}.mlp.experts"


def _experts(name: str, first: int, step: int, size: str) -> Stored:
    """In MXFP4 as released, or as floats by columns."""
    return Stored(f"{EXPERTS}.{name}_proj_weight", order=_rows(first, step, size), transposed=f"{EXPERTS}.{name}_proj")


HUGGING_FACE = HuggingFace(
    classes={"GptOssForCausalLM": {"rms_norm_eps": 1e-5, "rope_theta": 150000.0, "rope_parameters": ROPE}},
    config=CONFIG
    | {
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": layer_types("sliding_attention"),
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
    },
    tensors=ENDS
    | ATTENTION
    | QKV_BIAS
    | {
        "blk.{layer}.attn_output.bias": "model.layers.{layer}.self_attn.o_proj.bias",
        "blk.{layer}.attn_sinks.weight": "model.layers.{layer}.self_attn.sinks",
        "blk.{layer}.post_attention_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
        "blk.{layer}.ffn_gate_inp.weight": "model.layers.{layer}.mlp.router.weight",
        "blk.{layer}.ffn_gate_inp.bias": "model.layers.{layer}.mlp.router.bias",
        "blk.{layer}.ffn_gate_exps.weight": _experts("gate_up", 0, 2, "feed_forward_length"),
        "blk.{layer}.ffn_up_exps.weight": _experts("gate_up", 1, 2, "feed_forward_length"),
        "blk.{layer}.ffn_down_exps.weight": _experts("down", 0, 1, "embedding_length"),
        "blk.{layer}.ffn_gate_exps.bias": Stored(f"{EXPERTS}.gate_up_proj_bias", values=lambda bias: bias[:, 0::2]),
        "blk.{layer}.ffn_up_exps.bias": Stored(f"{EXPERTS}.gate_up_proj_bias", values=lambda bias: bias[:, 1::2]),
        "blk.{layer}.ffn_down_exps.bias": f"{EXPERTS}.down_proj_bias",
    },
    unwritten={"rope.scaling.yarn_truncate": TRUNCATE},
    only=ONLY | {"hidden_act": "silu", "attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
)


def read_spec(file: ModelFile) -> Spec:
    sizes = read_sizes(file, **read_experts(file))
    return read_common(
        file, Spec, sizes=sizes, layers=read_windows(file, sizes, period=2),
        rope=read_rope(file, sizes.head_size, truncate=TRUNCATE), experts_used=file.count("gpt-oss.expert_used_count"),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *QKV_BIAS_RULES,
            Rule.vector("attn_sinks.weight", "heads"),
            ATTENTION_OUTPUT_RULE,
            Rule.vector("attn_output.bias", "width"),
            Rule.vector("post_attention_norm.weight", "width"),
            ROUTER_RULE,
            Rule.vector("ffn_gate_inp.bias", "experts"),
            *EXPERT_GATE_UP_RULES,
            Rule.table("ffn_gate_exps.bias", "experts", "expert_ffn"),
            Rule.table("ffn_up_exps.bias", "experts", "expert_ffn"),
            EXPERT_DOWN_RULE,
            Rule.table("ffn_down_exps.bias", "experts", "width"),
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
        qkv = p.add_bias(qkv, *(vector(f"{blk}.attn_{name}.bias") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        sinks = vector(f"{blk}.attn_sinks.weight")
        h = p.attention(qkv, heads, 1 / sqrt(heads.size), cache, sinks)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.attn_output.bias"))
        h = p.rms_norm(x, vector(f"{blk}.post_attention_norm.weight"), spec.epsilon)
        scores = p.add_bias(p.matmul(h, matrix(f"{blk}.ffn_gate_inp.weight")), vector(f"{blk}.ffn_gate_inp.bias"))
        routes = p.route(scores, spec.experts_used, normalize=True)
        h = p.expert_matmul(h, routes, *(matrix(f"{blk}.ffn_{name}_exps.weight") for name in ("gate", "up")))
        h = p.add_expert_bias(h, routes, *(vector(f"{blk}.ffn_{name}_exps.bias") for name in ("gate", "up")))
        down, bias = matrix(f"{blk}.ffn_down_exps.weight"), vector(f"{blk}.ffn_down_exps.bias")
        x = p.add_experts(x, p.clamped_gate(h, ALPHA, LIMIT), routes, down, bias_=bias)
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
