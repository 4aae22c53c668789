"""A Cohere2 forward pass in float64, as naive.py is for Llama. It imports nothing of numatp."""

import numpy as np
from support.reference.naive import half, rotate


def logits(sizes, tensors, tokens, rounded=lambda rows: rows):
    """float64 (tokens, vocab). Every fourth layer sees all tokens and does not rotate, the others see the last `window`.

    rounded: what becomes of the rows that a matrix multiplies.
    """
    w = {name.removesuffix(".weight"): np.asarray(value, np.float64) for name, value in tensors.items()}
    heads, kv_heads = sizes["heads"], sizes["kv_heads"]
    x = w["token_embd"][tokens]  # (tokens, width)
    count = len(tokens)
    distance = np.arange(count)[:, None] - np.arange(count)
    for i in range(sizes["layers"]):
        h = rounded(norm(x, w[f"blk.{i}.attn_norm"], sizes["epsilon"]))
        q = (h @ w[f"blk.{i}.attn_q"].T).reshape(count, heads, -1)
        k = (h @ w[f"blk.{i}.attn_k"].T).reshape(count, kv_heads, -1)
        v = half((h @ w[f"blk.{i}.attn_v"].T).reshape(count, kv_heads, -1))
        seen = distance >= 0
        if i % 4 < 3:
            q, k = rotate(q, sizes["rope_base"]), rotate(k, sizes["rope_base"])
            seen &= distance < sizes["window"]
        k = half(k)
        outputs = []
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = np.where(seen, q[:, head] @ k[:, kv].T / np.sqrt(q.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, kv])
        gate = h @ w[f"blk.{i}.ffn_gate"].T
        ffn = rounded(gate / (1 + np.exp(-gate)) * (h @ w[f"blk.{i}.ffn_up"].T)) @ w[f"blk.{i}.ffn_down"].T
        x = x + rounded(np.concatenate(outputs, -1)) @ w[f"blk.{i}.attn_output"].T + ffn
    return rounded(norm(x, w["output_norm"], sizes["epsilon"])) @ w["token_embd"].T * sizes["logit_scale"]


def norm(x, weight, epsilon):
    apart = x - x.mean(-1, keepdims=True)
    return apart / np.sqrt((apart * apart).mean(-1, keepdims=True) + epsilon) * weight
