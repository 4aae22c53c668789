"""A Qwen3 forward pass with experts in float64, as naive.py is for Llama. It imports nothing of numatp."""

import numpy as np
from support.reference.naive import norm
from support.reference.naive_qwen3 import attention
from support.reference.naive_qwen3next import silu


def logits(sizes, tensors, tokens, rounded=lambda rows: rows):
    """float64 (tokens, vocab). rounded: what becomes of the rows that a matrix multiplies, but not the router."""
    w = {name.removesuffix(".weight"): np.asarray(value, np.float64) for name, value in tensors.items()}
    x = w["token_embd"][tokens]  # (tokens, width)
    for i in range(sizes["layers"]):
        layer = {name.removeprefix(f"blk.{i}."): value for name, value in w.items() if name.startswith(f"blk.{i}.")}
        x = x + rounded(attention(sizes, layer, rounded(norm(x, layer["attn_norm"], sizes["epsilon"])))) @ layer["attn_output"].T
        x = x + experts(sizes, layer, norm(x, layer["ffn_norm"], sizes["epsilon"]), rounded)
    return rounded(norm(x, w["output_norm"], sizes["epsilon"])) @ w["output"].T


def experts(sizes, w, h, rounded):
    """Each row's most probable experts, weighted by their probabilities among themselves."""
    scores, taken, out = h @ w["ffn_gate_inp"].T, rounded(h), np.zeros_like(h)
    for row in range(len(h)):
        best = np.argsort(-scores[row])[: sizes["used"]]
        shares = np.exp(scores[row, best] - scores[row].max())
        for expert, share in zip(best, shares / shares.sum(), strict=True):
            gate, up, down = (w[f"ffn_{name}_exps"][expert] for name in ("gate", "up", "down"))
            made = silu(taken[row] @ gate.T) * (taken[row] @ up.T)
            out[row] += share * (rounded(made[None])[0] @ down.T)
    return out
