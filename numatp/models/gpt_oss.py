"""gpt-oss: experts with biases and a clamped gate, every second layer sees a window of tokens, and attention has a sink: one more
token that takes a part of the softmax and gives nothing.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.model_file import ModelFile
from numatp.models.rope import read_rope
from numatp.models.spec import Spec, decoder_rules, read_common, read_experts, read_sizes, read_windows
from numatp.weights.loader import Rule, Weights
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import LayerCache, Ops

ALPHA, LIMIT = 1.702, 7.0  # of the gate


@dataclass(frozen=True)
class GptOssSpec(Spec):
    experts_used: int  # by each token


def read_spec(file: ModelFile) -> GptOssSpec:
    sizes = read_sizes(file, **read_experts(file))
    return read_common(
        file, GptOssSpec, sizes=sizes, layers=read_windows(file, period=2), rope=read_rope(file, sizes.head_size, truncate=False),
        experts_used=file.count("gpt-oss.expert_used_count"),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            ("attn_norm.weight", ("width",)),
            ("attn_q.weight", ("heads*head_size", "width")),
            ("attn_k.weight", ("kv_heads*head_size", "width")),
            ("attn_v.weight", ("kv_heads*head_size", "width")),
            ("attn_q.bias", ("heads*head_size",)),
            ("attn_k.bias", ("kv_heads*head_size",)),
            ("attn_v.bias", ("kv_heads*head_size",)),
            ("attn_sinks.weight", ("heads",)),
            ("attn_output.weight", ("width", "heads*head_size")),
            ("attn_output.bias", ("width",)),
            ("post_attention_norm.weight", ("width",)),
            ("ffn_gate_inp.weight", ("experts", "width")),
            ("ffn_gate_inp.bias", ("experts",)),
            ("ffn_gate_exps.weight", ("experts", "expert_ffn", "width")),
            ("ffn_up_exps.weight", ("experts", "expert_ffn", "width")),
            Rule("ffn_gate_exps.bias", ("experts", "expert_ffn"), table="rows"),
            Rule("ffn_up_exps.bias", ("experts", "expert_ffn"), table="rows"),
            ("ffn_down_exps.weight", ("experts", "width", "expert_ffn")),
            Rule("ffn_down_exps.bias", ("experts", "width"), table="rows"),
        ),
    )


def forward(p: "Ops", spec: GptOssSpec, split: Split, weights: Weights, caches: "list[LayerCache]") -> None:
    sizes, matrix, vector = spec.sizes, weights.matrix, weights.vector
    heads, kv_heads, head_size = split.heads, split.kv_heads, sizes.head_size
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul("qkv", h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        p.add_bias(qkv, *(vector(f"{blk}.attn_{name}.bias") for name in "qkv"))
        p.rotate_and_append(qkv, len(heads), len(kv_heads), head_size, angles, cache, neighbours=False)
        sinks = vector(f"{blk}.attn_sinks.weight")
        h = p.attention(qkv, heads, kv_heads, sizes.group, head_size, 1 / sqrt(head_size), cache, sinks)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.attn_output.bias"))
        h = p.rms_norm(x, vector(f"{blk}.post_attention_norm.weight"), spec.epsilon)
        scores = p.add_bias(p.matmul("router", h, matrix(f"{blk}.ffn_gate_inp.weight")), vector(f"{blk}.ffn_gate_inp.bias"))
        routes = p.route(scores, spec.experts_used, normalize=True)
        h = p.expert_matmul("expert_gate_up", h, routes, *(matrix(f"{blk}.ffn_{name}_exps.weight") for name in ("gate", "up")))
        p.add_expert_bias(h, routes, *(vector(f"{blk}.ffn_{name}_exps.bias") for name in ("gate", "up")))
        down, bias = matrix(f"{blk}.ffn_down_exps.weight"), vector(f"{blk}.ffn_down_exps.bias")
        x = p.add_experts(x, p.clamped_gate(h, ALPHA, LIMIT), routes, down, bias_=bias)
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
