"""A Qwen3 forward pass in float64, as naive.py is for Llama. It imports nothing of numatp."""

import numpy as np
from support.reference.naive import half, norm
from support.reference.naive_qwen3next import rotate_halves, silu


def logits(sizes, tensors, tokens, rounded=lambda rows: rows):
    """float64 (tokens, vocab). rounded: what becomes of the rows that a matrix multiplies."""
    w = {name.removesuffix(".weight"): np.asarray(value, np.float64) for name, value in tensors.items()}
    x = w["token_embd"][tokens]  # (tokens, width)
    for i in range(sizes["layers"]):
        layer = {name.removeprefix(f"blk.{i}."): value for name, value in w.items() if name.startswith(f"blk.{i}.")}
        x = x + rounded(attention(sizes, layer, rounded(norm(x, layer["attn_norm"], sizes["epsilon"])))) @ layer["attn_output"].T
        h = rounded(norm(x, layer["ffn_norm"], sizes["epsilon"]))
        x = x + rounded(silu(h @ layer["ffn_gate"].T) * (h @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    return rounded(norm(x, w["output_norm"], sizes["epsilon"])) @ w.get("output", w["token_embd"]).T


def attention(sizes, w, h):
    count, heads, kv_heads, size = len(h), sizes["heads"], sizes["kv_heads"], sizes["head_size"]
    q, k, v = ((h @ w[f"attn_{name}"].T).reshape(count, -1, size) for name in "qkv")
    q = rotate_halves(norm(q, w["attn_q_norm"], sizes["epsilon"]), sizes)
    k, v = half(rotate_halves(norm(k, w["attn_k_norm"], sizes["epsilon"]), sizes)), half(v)
    hidden, outputs = np.triu(np.full((count, count), -np.inf), 1), []
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = q[:, head] @ k[:, kv].T / np.sqrt(size) + hidden
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, kv])
    return np.concatenate(outputs, -1)
