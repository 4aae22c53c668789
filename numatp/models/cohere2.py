"""Command-A and Command-R7B: attention and feed-forward side by side on one norm, so that a layer needs one exchange. Most layers
see a window of tokens and rotate q and k; every few layers one sees all tokens and knows no positions.
"""

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
class Cohere2Spec(Spec):
    rotated: int  # of a head's values, from the first on
    logit_scale: float


def read_spec(file: GGUFFile) -> Cohere2Spec:
    width, heads = file.integer("cohere2.embedding_length"), file.integer("cohere2.attention.head_count")
    head_size = file.integer("cohere2.attention.key_length", default=width // heads)
    window = file.integer("cohere2.attention.sliding_window")
    rotated = file.integer("cohere2.rope.dimension_count", default=head_size)
    if not 0 < rotated <= head_size or rotated % 2 or window <= 0:
        file.fail(f"claims {rotated} rotated values of {head_size} and a window of {window} tokens; convert the model again")
    period = file.integer("cohere2.attention.sliding_window_pattern", default=4)  # the last layer of each sees all tokens
    return Cohere2Spec(
        sizes=Sizes(
            width=width,
            heads=heads,
            kv_heads=file.integer("cohere2.attention.head_count_kv", default=heads),
            head_size=head_size,
            ffn=file.integer("cohere2.feed_forward_length"),
            vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        ),
        layers=tuple(
            Attention(None if period and (layer + 1) % period == 0 else window)
            for layer in range(file.integer("cohere2.block_count"))
        ),
        context=file.integer("cohere2.context_length"),
        epsilon=file.number("cohere2.attention.layer_norm_epsilon"),
        rope_base=file.number("cohere2.rope.freq_base", default=10000.0),
        tied=True,
        rotated=rotated,
        logit_scale=file.number("cohere2.logit_scale"),
    )


def rules(spec: Cohere2Spec) -> list[Rule]:
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
                ("ffn_gate", ("ffn", "width")),
                ("ffn_up", ("ffn", "width")),
                ("attn_output", ("width", "heads*head_size")),
                ("ffn_down", ("width", "ffn")),
            )
        ]
    return [*listed, Rule("output_norm.weight", ("width",))]


def forward(p: "Ops", spec: Cohere2Spec, split: Split, weights: Weights, caches: "list[LayerCache]") -> None:
    sizes, matrix, vector = spec.sizes, weights.matrix, weights.vector
    heads, kv_heads, head_size = split.heads, split.kv_heads, sizes.head_size
    angles = p.rotation(spec.rope_base ** (-np.arange(0, spec.rotated, 2) / spec.rotated))
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, (kept, cache) in enumerate(zip(spec.layers, caches, strict=True)):
        blk = f"blk.{layer}"
        positions = angles if kept != Attention() else None
        h = p.layer_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul("qkv", h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        gate_up = p.matmul("gate_up", h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight"))
        p.rotate_and_append(qkv, len(heads), len(kv_heads), head_size, positions, cache, neighbours=True)
        ffn = p.silu_gate(gate_up)
        attended = p.attention(qkv, heads, kv_heads, sizes.group, head_size, 1 / sqrt(head_size), cache)
        x = p.add_products(x, (ffn, matrix(f"{blk}.ffn_down.weight")), (attended, matrix(f"{blk}.attn_output.weight")))
    # Scaling the normalised rows scales the logits.
    x = p.layer_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True, scale=spec.logit_scale)
    p.logits(x, matrix("token_embd.weight"), split.vocab.start)
