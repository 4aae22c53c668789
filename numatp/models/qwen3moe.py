"""Qwen3 with experts (Qwen3-30B-A3B, Qwen3-235B-A22B): as Qwen3, where each row goes through a few of many FFNs."""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.gguf import GGUFFile
from numatp.models.spec import Attention, Spec
from numatp.weights.loader import Rule, Weights
from numatp.weights.splits import Sizes, Split

if TYPE_CHECKING:
    from numatp.program.ops import LayerCache, Ops


@dataclass(frozen=True)
class MixtureSpec(Spec):
    experts_used: int  # by each token


def read_spec(file: GGUFFile) -> MixtureSpec:
    sizes = Sizes(
        width=file.count("qwen3moe.embedding_length"),
        heads=file.count("qwen3moe.attention.head_count"),
        kv_heads=file.count("qwen3moe.attention.head_count_kv"),
        head_size=file.count("qwen3moe.attention.key_length"),
        ffn=0,
        vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        experts=file.count("qwen3moe.expert_count"),
        expert_ffn=file.count("qwen3moe.expert_feed_forward_length"),
    )
    if sizes.heads % sizes.kv_heads:
        file.fail(f"{sizes.heads} heads cannot share {sizes.kv_heads} KV heads evenly: damaged; download it again")
    if file.text("qwen3moe.rope.scaling.type", "none") != "none":
        file.fail("scales its rotary embedding, which numatp cannot compute for this architecture yet; use it without scaling")
    used = file.count("qwen3moe.expert_used_count")
    if used > sizes.experts or sizes.expert_ffn % 32:
        file.fail(f"claims {used} of {sizes.experts} experts of {sizes.expert_ffn} for each token; convert the model again")
    return MixtureSpec(
        sizes=sizes,
        layers=(Attention(),) * file.count("qwen3moe.block_count", most=max(len(file.tensors), 1)),
        context=file.count("qwen3moe.context_length"),
        epsilon=file.positive("qwen3moe.attention.layer_norm_rms_epsilon"),
        rope_base=file.positive("qwen3moe.rope.freq_base", default=10000.0),
        tied="output.weight" not in file.tensors,
        experts_used=used,
    )


def rules(spec: Spec) -> list[Rule]:
    """The tensors, in the order in which they lie in memory: what one op reads lies side by side."""
    listed = [Rule("token_embd.weight", ("vocab", "width"))]
    for layer in range(len(spec.layers)):
        listed += [
            Rule(f"blk.{layer}.{name}.weight", shape)
            for name, shape in (
                ("attn_norm", ("width",)),
                ("attn_q", ("heads*head_size", "width")),
                ("attn_k", ("kv_heads*head_size", "width")),
                ("attn_v", ("kv_heads*head_size", "width")),
                ("attn_q_norm", ("head_size",)),
                ("attn_k_norm", ("head_size",)),
                ("attn_output", ("width", "heads*head_size")),
                ("ffn_norm", ("width",)),
                ("ffn_gate_inp", ("experts", "width")),
                ("ffn_gate_exps", ("experts", "expert_ffn", "width")),
                ("ffn_up_exps", ("experts", "expert_ffn", "width")),
                ("ffn_down_exps", ("experts", "width", "expert_ffn")),
            )
        ]
    listed.append(Rule("output_norm.weight", ("width",)))
    if not spec.tied:
        listed.append(Rule("output.weight", ("vocab", "width")))
    return listed


def forward(p: "Ops", spec: MixtureSpec, split: Split, weights: Weights, caches: "list[LayerCache]") -> None:
    sizes, matrix, vector = spec.sizes, weights.matrix, weights.vector
    heads, kv_heads, head_size = split.heads, split.kv_heads, sizes.head_size
    angles = p.rotation(spec.rope_base ** (-np.arange(0, head_size, 2) / head_size))
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul("qkv", h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        p.rms_norm_heads(qkv, len(heads), len(kv_heads), head_size, q_norm, k_norm, spec.epsilon)
        p.rotate_and_append(qkv, len(heads), len(kv_heads), head_size, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, kv_heads, sizes.group, head_size, 1 / sqrt(head_size), cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        routes = p.route(p.matmul("router", h, matrix(f"{blk}.ffn_gate_inp.weight")), spec.experts_used, normalize=True)
        gate, up = (matrix(f"{blk}.ffn_{name}_exps.weight") for name in ("gate", "up"))
        h = p.silu_gate(p.expert_matmul("expert_gate_up", h, routes, gate, up))
        x = p.add_experts(x, h, routes, matrix(f"{blk}.ffn_down_exps.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
