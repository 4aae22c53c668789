"""Qwen3-Next: of every few layers one has attention whose result is gated, the others a gated delta rule, which keeps a state
of fixed size instead of keys and values. GGUF has 1 added to the norms' weights, and -exp(A_log) as ssm_a.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.gguf import GGUFFile
from numatp.kernels.layout import state_bytes
from numatp.models.spec import Attention, Recurrent, Spec
from numatp.weights.loader import Rule, Weights
from numatp.weights.splits import Sizes, Split

if TYPE_CHECKING:
    from numatp.program.ops import LayerCache, LayerState, Ops, Value


@dataclass(frozen=True)
class Qwen3NextSpec(Spec):
    rotated: int  # of a head's values, from the first on


def read_spec(file: GGUFFile) -> Qwen3NextSpec:
    def integer(key: str, default: int | None = None) -> int:
        return file.integer(f"qwen3next.{key}", default)

    if integer("expert_count", default=0):
        file.fail("has experts, which numatp cannot compute for this architecture yet; use another model")
    if integer("nextn_predict_layers", default=0):
        file.fail("has layers that predict further tokens, which numatp does not use; convert the model without them")
    head_size, linear_head_size = integer("attention.key_length"), integer("ssm.state_size")
    value_heads, key_heads = integer("ssm.time_step_rank"), integer("ssm.group_count")
    if not 0 < key_heads <= value_heads or value_heads % key_heads or linear_head_size <= 0 or linear_head_size % 16:
        file.fail(f"claims {key_heads} key and {value_heads} value heads of {linear_head_size}; convert the model again")
    if integer("ssm.inner_size") != value_heads * linear_head_size:
        file.fail("has key and value heads of different sizes in linear attention, which numatp cannot compute yet")
    rotated, conv_width = integer("rope.dimension_count"), integer("ssm.conv_kernel")
    if not 0 < rotated <= head_size or rotated % 2 or conv_width < 2:
        file.fail(f"claims {rotated} rotated values of {head_size} and a convolution over {conv_width}; convert the model again")
    sizes = Sizes(
        width=integer("embedding_length"),
        heads=integer("attention.head_count"),
        kv_heads=integer("attention.head_count_kv"),
        head_size=head_size,
        ffn=integer("feed_forward_length"),
        vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        linear_key_heads=key_heads,
        linear_value_heads=value_heads,
        linear_head_size=linear_head_size,
        conv_width=conv_width,
    )
    recurrent, period = Recurrent(partial(_state_bytes, sizes)), max(integer("full_attention_interval", default=4), 1)
    return Qwen3NextSpec(
        sizes=sizes,
        layers=tuple(recurrent if (layer + 1) % period else Attention() for layer in range(integer("block_count"))),
        context=integer("context_length"),
        epsilon=file.number("qwen3next.attention.layer_norm_rms_epsilon"),
        rope_base=file.number("qwen3next.rope.freq_base", default=10000.0),
        tied="output.weight" not in file.tensors,
        rotated=rotated,
    )


def _state_bytes(sizes: Sizes, split: Split) -> int:
    key_heads = len(split.linear_key_heads)
    return state_bytes(key_heads, key_heads * sizes.linear_group, sizes.linear_head_size, sizes.conv_width)


LINEAR_KEYS = "linear_key_heads*linear_head_size"
LINEAR_VALUES = "linear_key_heads*linear_group*linear_head_size"
LINEAR_QKV = f"{LINEAR_KEYS} + {LINEAR_KEYS} + {LINEAR_VALUES}"


def rules(spec: Qwen3NextSpec) -> list[Rule]:
    """The tensors, in the order in which they lie in memory: what one op reads lies side by side."""
    listed = [Rule("token_embd.weight", ("vocab", "width"))]
    for layer, kept in enumerate(spec.layers):
        blk = f"blk.{layer}"
        listed.append(Rule(f"{blk}.attn_norm.weight", ("width",)))
        if isinstance(kept, Attention):
            listed += [
                Rule(f"{blk}.attn_q.weight", ("heads*2*head_size", "width"), part=(0, 2)),  # a head's queries, then its gates
                Rule(f"{blk}.attn_k.weight", ("kv_heads*head_size", "width")),
                Rule(f"{blk}.attn_v.weight", ("kv_heads*head_size", "width")),
                Rule(f"{blk}.attn_q.weight", ("heads*2*head_size", "width"), part=(1, 2)),
                Rule(f"{blk}.attn_q_norm.weight", ("head_size",)),
                Rule(f"{blk}.attn_k_norm.weight", ("head_size",)),
                Rule(f"{blk}.attn_output.weight", ("width", "heads*head_size")),
            ]
        else:
            listed += [
                Rule(f"{blk}.attn_qkv.weight", (LINEAR_QKV, "width")),
                Rule(f"{blk}.attn_gate.weight", (LINEAR_VALUES, "width")),
                Rule(f"{blk}.ssm_ba.weight", ("linear_key_heads*2*linear_group", "width")),
                Rule(f"{blk}.ssm_conv1d.weight", (LINEAR_QKV, "conv_width"), table=True),
                Rule(f"{blk}.ssm_a", ("linear_key_heads*linear_group",)),
                Rule(f"{blk}.ssm_dt.bias", ("linear_key_heads*linear_group",)),
                Rule(f"{blk}.ssm_norm.weight", ("linear_head_size",)),
                Rule(f"{blk}.ssm_out.weight", ("width", LINEAR_VALUES)),
            ]
        listed += [
            Rule(f"{blk}.post_attention_norm.weight", ("width",)),
            Rule(f"{blk}.ffn_gate.weight", ("ffn", "width")),
            Rule(f"{blk}.ffn_up.weight", ("ffn", "width")),
            Rule(f"{blk}.ffn_down.weight", ("width", "ffn")),
        ]
    listed.append(Rule("output_norm.weight", ("width",)))
    if not spec.tied:
        listed.append(Rule("output.weight", ("vocab", "width")))
    return listed


def forward(p: "Ops", spec: Qwen3NextSpec, split: Split, weights: Weights, caches: "Sequence[LayerCache | LayerState]") -> None:
    from numatp.program.ops import LayerCache

    sizes, epsilon, matrix, vector = spec.sizes, spec.epsilon, weights.matrix, weights.vector
    heads, kv_heads, head_size, key_heads = split.heads, split.kv_heads, sizes.head_size, len(split.linear_key_heads)
    angles = p.rotation(spec.rope_base ** (-np.arange(0, spec.rotated, 2) / spec.rotated))

    def attention(blk: str, h: "Value", cache: "LayerCache") -> "Value":
        qkv = p.matmul("qkv", h, *(matrix(f"{blk}.attn_{name}") for name in ("q.weight[0]", "k.weight", "v.weight")))
        gate = p.matmul("gate", h, matrix(f"{blk}.attn_q.weight[1]"))
        q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
        p.rms_norm_heads(qkv, len(heads), len(kv_heads), head_size, q_norm, k_norm, epsilon)
        p.rotate_and_append(qkv, len(heads), len(kv_heads), head_size, angles, cache, neighbours=False)
        return p.sigmoid_gate(p.attention(qkv, heads, kv_heads, sizes.group, head_size, 1 / sqrt(head_size), cache), gate)

    def linear_attention(blk: str, h: "Value", state: "LayerState") -> "Value":
        qkv = p.matmul("linear_qkv", h, matrix(f"{blk}.attn_qkv.weight"))
        gate = p.matmul("linear_gate", h, matrix(f"{blk}.attn_gate.weight"))
        beta_decay = p.matmul("beta_decay", h, matrix(f"{blk}.ssm_ba.weight"))
        qkv = p.causal_conv(qkv, vector(f"{blk}.ssm_conv1d.weight"), sizes.conv_width, state)
        h = p.gated_delta(
            qkv, beta_decay, vector(f"{blk}.ssm_a"), vector(f"{blk}.ssm_dt.bias"), key_heads, sizes.linear_group,
            sizes.linear_head_size, sizes.conv_width, epsilon, state,
        )  # fmt: skip
        return p.gated_rms_norm(h, gate, vector(f"{blk}.ssm_norm.weight"), epsilon)

    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in enumerate(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon)
        if isinstance(cache, LayerCache):
            x = p.add_product(x, attention(blk, h, cache), matrix(f"{blk}.attn_output.weight"))
        else:
            x = p.add_product(x, linear_attention(blk, h, cache), matrix(f"{blk}.ssm_out.weight"))
        h = p.rms_norm(x, vector(f"{blk}.post_attention_norm.weight"), epsilon)
        h = p.silu_gate(p.matmul("gate_up", h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_product(x, h, matrix(f"{blk}.ffn_down.weight"))
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
