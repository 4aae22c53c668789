"""A Qwen3-Next forward pass without experts in float64, as naive.py is for Llama. It imports nothing of numatp."""

import numpy as np
from support.reference.naive import half, norm


def logits(sizes, tensors, tokens, rounded=lambda rows: rows):
    """float64 (tokens, vocab). Every fourth layer has attention, the others the gated delta rule, token after token.

    rounded: what becomes of the rows that a matrix multiplies.
    """
    w = {name.removesuffix(".weight"): np.asarray(value, np.float64) for name, value in tensors.items()}
    x = w["token_embd"][tokens]  # (tokens, width)
    for i in range(sizes["layers"]):
        layer = {name.removeprefix(f"blk.{i}."): value for name, value in w.items() if name.startswith(f"blk.{i}.")}
        h = rounded(norm(x, layer["attn_norm"], sizes["epsilon"]))
        if i % 4 == 3:
            x = x + rounded(attention(sizes, layer, h)) @ layer["attn_output"].T
        else:
            x = x + rounded(linear_attention(sizes, layer, h)) @ layer["ssm_out"].T
        h = rounded(norm(x, layer["post_attention_norm"], sizes["epsilon"]))
        x = x + rounded(silu(h @ layer["ffn_gate"].T) * (h @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    return rounded(norm(x, w["output_norm"], sizes["epsilon"])) @ w["output"].T


def attention(sizes, w, h):
    count, heads, kv_heads, size = len(h), sizes["heads"], sizes["kv_heads"], sizes["head_size"]
    q, gate = np.split((h @ w["attn_q"].T).reshape(count, heads, 2 * size), 2, -1)
    k, v = ((h @ w[f"attn_{name}"].T).reshape(count, kv_heads, size) for name in "kv")
    q = rotate_halves(norm(q, w["attn_q_norm"], sizes["epsilon"]), sizes)
    k = half(rotate_halves(norm(k, w["attn_k_norm"], sizes["epsilon"]), sizes))
    v, hidden = half(v), np.triu(np.full((count, count), -np.inf), 1)
    outputs = []
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = q[:, head] @ k[:, kv].T / np.sqrt(size) + hidden
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, kv])
    return (np.stack(outputs, 1) * sigmoid(gate)).reshape(count, -1)


def linear_attention(sizes, w, h):
    count, keys, heads, size = len(h), sizes["key_heads"], sizes["value_heads"], sizes["linear_head_size"]
    group = heads // keys
    past = np.concatenate([np.zeros((sizes["conv_width"] - 1, len(w["attn_qkv"]))), h @ w["attn_qkv"].T])
    qkv = silu(sum(past[j : j + count] * w["ssm_conv1d"][:, j] for j in range(sizes["conv_width"])))
    q, k, v = (part.reshape(count, -1, size) for part in np.split(qkv, [keys * size, 2 * keys * size], -1))
    q, k = (unit(part).repeat(group, 1) for part in (q, k))
    b, a = np.split((h @ w["ssm_ba"].T).reshape(count, keys, 2 * group), 2, -1)
    beta = sigmoid(b).reshape(count, heads)
    decay = np.exp(w["ssm_a"] * np.log1p(np.exp(a.reshape(count, heads) + w["ssm_dt.bias"])))
    state, outputs = np.zeros((heads, size, size)), []  # keys by values
    for t in range(count):
        state = state * decay[t, :, None, None]
        change = beta[t, :, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t, :, :, None] * change[:, None]
        outputs.append(np.einsum("hkv,hk->hv", state, q[t] / np.sqrt(size)))
    gate = (h @ w["attn_gate"].T).reshape(count, heads, size)
    return (norm(np.array(outputs), w["ssm_norm"], sizes["epsilon"]) * silu(gate)).reshape(count, -1)


def rotate_halves(x, sizes):
    """x (tokens, heads, head_size): of the first `rotated` values, i and i + rotated / 2 turn as a pair."""
    size = sizes["rotated"]
    first, second, rest = np.split(x, [size // 2, size], -1)
    angles = np.arange(len(x))[:, None] * sizes["rope_base"] ** (-np.arange(0, size, 2) / size)
    turned = (first + 1j * second) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag, rest], -1)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)
