"""A Llama forward pass as its papers say it, in float64: no cache, blocks, tiles or ranks. It imports nothing of numatp."""

import numpy as np


def logits(sizes, tensors, tokens, rounded=lambda rows: rows):
    """float64 (tokens, vocab). sizes: dict with heads, kv_heads, layers, epsilon, rope_base; tensors: name -> float array; rounded:
    what becomes of the rows that a matrix multiplies.

    Keys and values pass through float16, because a float16 cache is part of what numatp promises to compute.
    """
    w = {name.removesuffix(".weight"): np.asarray(value, np.float64) for name, value in tensors.items()}
    heads, kv_heads = sizes["heads"], sizes["kv_heads"]
    x = w["token_embd"][tokens]  # (tokens, width)
    count = len(tokens)
    hidden = np.triu(np.full((count, count), -np.inf), 1)
    for i in range(sizes["layers"]):
        h = rounded(norm(x, w[f"blk.{i}.attn_norm"], sizes["epsilon"]))
        q = rotate((h @ w[f"blk.{i}.attn_q"].T).reshape(count, heads, -1), sizes["rope_base"])
        k = half(rotate((h @ w[f"blk.{i}.attn_k"].T).reshape(count, kv_heads, -1), sizes["rope_base"]))
        v = half((h @ w[f"blk.{i}.attn_v"].T).reshape(count, kv_heads, -1))
        outputs = []
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, kv].T / np.sqrt(q.shape[-1]) + hidden
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, kv])
        x = x + rounded(np.concatenate(outputs, -1)) @ w[f"blk.{i}.attn_output"].T
        h = rounded(norm(x, w[f"blk.{i}.ffn_norm"], sizes["epsilon"]))
        gate = h @ w[f"blk.{i}.ffn_gate"].T
        x = x + rounded(gate / (1 + np.exp(-gate)) * (h @ w[f"blk.{i}.ffn_up"].T)) @ w[f"blk.{i}.ffn_down"].T
    return rounded(norm(x, w["output_norm"], sizes["epsilon"])) @ w.get("output", w["token_embd"]).T


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def half(x):
    return x.astype(np.float16).astype(np.float64)


def rotate(x, base):
    """x (tokens, heads, head_size): neighbours (2i, 2i + 1) turn by position / base**(2i / head_size)."""
    size = x.shape[-1]
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(0, size, 2) / size)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
