"""Llama 1-3, Mistral, SmolLM: pre-norm blocks, grouped-query attention with rotary embedding, SwiGLU."""

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
    width, heads = file.count("llama.embedding_length"), file.count("llama.attention.head_count")
    head_size = file.count("llama.rope.dimension_count", default=width // heads)
    sizes = Sizes(
        width=width,
        heads=heads,
        kv_heads=file.count("llama.attention.head_count_kv", default=heads),
        head_size=file.count("llama.attention.key_length", default=head_size),
        ffn=file.count("llama.feed_forward_length"),
        vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
    )
    if heads % sizes.kv_heads:
        file.fail(f"{heads} heads cannot share {sizes.kv_heads} KV heads evenly: damaged; download it again")
    return Spec(
        sizes=sizes,
        layers=(Attention(),) * file.count("llama.block_count", most=max(len(file.tensors), 1)),
        context=file.count("llama.context_length"),
        epsilon=file.positive("llama.attention.layer_norm_rms_epsilon"),
        rope_base=file.positive("llama.rope.freq_base", default=10000.0),
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
    frequencies = spec.rope_base ** (-np.arange(0, sizes.head_size, 2) / sizes.head_size)
    angles = p.rotation(frequencies)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul("qkv", h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        p.rotate_and_append(qkv, len(split.heads), len(split.kv_heads), sizes.head_size, angles, cache, neighbours=True)
        h = p.attention(qkv, split.heads, split.kv_heads, sizes.group, sizes.head_size, 1 / sqrt(sizes.head_size), cache)
        x = p.add_product(x, h, matrix(f"{blk}.attn_output.weight"))
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), spec.epsilon)
        h = p.silu_gate(p.matmul("gate_up", h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
