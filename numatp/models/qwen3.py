"""Qwen3 without experts: as Llama, with a norm for each query and key head, a head size of its own and rotation by halves."""

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.gguf import GGUFFile
from numatp.models.spec import Attention, Spec
from numatp.weights.loader import Rule, Weights
from numatp.weights.splits import Sizes, Split

if TYPE_CHECKING:
    from numatp.program.ops import LayerCache, Ops


def read_spec(file: GGUFFile) -> Spec:
    sizes = Sizes(
        width=file.count("qwen3.embedding_length"),
        heads=file.count("qwen3.attention.head_count"),
        kv_heads=file.count("qwen3.attention.head_count_kv"),
        head_size=file.count("qwen3.attention.key_length"),
        ffn=file.count("qwen3.feed_forward_length"),
        vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
    )
    if sizes.heads % sizes.kv_heads:
        file.fail(f"{sizes.heads} heads cannot share {sizes.kv_heads} KV heads evenly: damaged; download it again")
    if file.text("qwen3.rope.scaling.type", "none") != "none":
        file.fail("scales its rotary embedding, which numatp cannot compute for this architecture yet; use it without scaling")
    return Spec(
        sizes=sizes,
        layers=(Attention(),) * file.count("qwen3.block_count", most=max(len(file.tensors), 1)),
        context=file.count("qwen3.context_length"),
        epsilon=file.positive("qwen3.attention.layer_norm_rms_epsilon"),
        rope_base=file.positive("qwen3.rope.freq_base", default=10000.0),
        tied="output.weight" not in file.tensors,
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
                ("ffn_gate", ("ffn", "width")),
                ("ffn_up", ("ffn", "width")),
                ("ffn_down", ("width", "ffn")),
            )
        ]
    listed.append(Rule("output_norm.weight", ("width",)))
    if not spec.tied:
        listed.append(Rule("output.weight", ("vocab", "width")))
    return listed


def forward(p: "Ops", spec: Spec, split: Split, weights: Weights, caches: "list[LayerCache]") -> None:
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
        h = p.silu_gate(p.matmul("gate_up", h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
