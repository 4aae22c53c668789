"""Golden models (tests/data/make_golden.py), and how to take out each of their features, as an engine would that forgot it.

A way to do it is tensors(pattern, value): vectors hold one value; spec(field=function of the old value); or word(name, function):
another function for a word of program/ops.py, which gets the true one first.
"""

from math import log, sqrt
from pathlib import Path

from support.commands import TESTS

GOLDEN = TESTS / "data/golden"


def model_file(source, folder):
    """source: one of the recorded files, or a module of a tiny model, which is then written into the folder."""
    if isinstance(source, Path):
        return source
    source.write(folder / "tiny.gguf")
    return folder / "tiny.gguf"


def tensors(pattern, value):
    return "tensors", pattern, value


def spec(**changes):
    return "spec", changes


def word(name, function):
    return "word", name, function


def plain_rope(rope):
    """Without scaling."""
    from numatp.models import rope as module

    return module.Rope(module.plain(1000.0, 2 * len(rope.frequencies)))


def changed(**changes):
    from dataclasses import replace

    return lambda old: replace(old, **changes)


def yarn_rope(fast, slow, truncate):
    """YaRN as the golden models have it but for its range."""

    def change(rope):
        from numatp.models import rope as module

        frequencies = module.plain(1000.0, 2 * len(rope.frequencies))
        return module.Rope(module.yarn(frequencies, 1000.0, 4.0, 32, fast, slow, truncate), rope.scale)

    return change


def all_rotated(true, p, qkv, heads, angles, cache, neighbours):
    """Also in layers that know no positions."""
    p.remembered = angles or p.remembered
    return true(p, qkv, heads, p.remembered, cache, neighbours=neighbours)


def no_window(true, p, qkv, heads, scale, cache, *rest, **more):
    from dataclasses import replace

    from numatp.kernels.layout import NO_WINDOW

    return true(p, qkv, heads, scale, replace(cache, window=NO_WINDOW), *rest, **more)


def one_more_in_window(true, p, qkv, heads, scale, cache, *rest, **more):
    from dataclasses import replace

    return true(p, qkv, heads, scale, replace(cache, window=cache.window + 1), *rest, **more)


def borrows(qkv, heads):
    """Whether these are the queries of a layer that reads the keys and values of another."""
    return qkv.width == len(heads.queries) * heads.size


def first_layers_cache(true, p, qkv, heads, scale, cache, *rest, **more):
    """For layers that should read the last one of their kind."""
    p.first_cache = getattr(p, "first_cache", cache)
    return true(p, qkv, heads, scale, p.first_cache if borrows(qkv, heads) and not cache.sees_all else cache, *rest, **more)


def queries_as_they_are(true, p, qkv, heads, *rest, **more):
    return qkv if borrows(qkv, heads) else true(p, qkv, heads, *rest, **more)


def window_for_chunk(true, p, qkv, heads, scale, cache, *rest, **more):
    from dataclasses import replace

    return true(p, qkv, heads, scale, replace(cache, chunked=False), *rest, **more)


HALVES = word("rotate_and_append", lambda true, p, *args, neighbours, **more: true(p, *args, neighbours=not neighbours, **more))
WINDOW = {"window": word("attention", no_window), "window of 20": word("attention", one_more_in_window)}
SCORES = word("attention", lambda true, p, qkv, heads, scale, *rest, **more: true(p, qkv, heads, scale * sqrt(2), *rest, **more))
LATENT_SCORES = spec(rope=lambda rope: changed(score_scale=rope.score_scale * sqrt(2))(rope))  # of rows and of prompts
GATE = word("silu_gate", lambda true, p, x: p.gelu_gate(x))
HEAD_NORMS = {
    "norm of heads": word("rms_norm_heads", lambda true, p, qkv, *rest: qkv),
    "weight of q's norm": tensors("attn_q_norm", 1),
    "weight of k's norm": tensors("attn_k_norm", 1),
}
QKV_BIAS = {f"bias of {name}": tensors(f"attn_{name}.bias", 0) for name in "qkv"}
NORMS = {
    "attn_norm": tensors("attn_norm", 1),
    "ffn_norm": tensors("ffn_norm|post_attention_norm", 1),
    "output_norm": tensors("output_norm", 1),
}
COMMON = {"pairs of the rotation": HALVES, "scale of the scores": SCORES}
MIXTURE = {
    "all experts of a token": spec(experts_used=lambda used: used - 1),
    "normalised shares": spec(normalize=lambda normalize: not normalize),
    "gate": GATE,
}
SHARED = {
    "gate of the shared expert": word("dot_gate", lambda true, p, x, h, weight: x),
    "shared expert": word("add_experts", lambda true, p, x, h, routes, down, shared: true(p, x, h, routes, down)),
}
LAYER_NORM = {
    "mean of the norm": word(
        "layer_norm", lambda true, p, x, weight, epsilon, logits_only=False, scale=1.0: p.rms_norm(x, weight, epsilon, logits_only)
    ),
    "logit scale": spec(logit_scale=lambda scale: 1.0),
    "attn_norm": tensors("attn_norm", 1),
    "output_norm": tensors("output_norm", 1),
}
GEMMA = {
    "scale of the embedding": word("embed", lambda true, p, weight, first, scale: true(p, weight, first)),
    "norm after a block": word(
        "add_normalized_product", lambda true, p, x, h, weight, norm, epsilon, scale=1.0: p.add_product(x, h, weight)
    ),
    "weight of the norm after attention": tensors("post_attention_norm", 1),
    "weight of the norm after the FFN": tensors("post_ffw_norm", 1),
    "gelu": word("gelu_gate", lambda true, p, x: p.silu_gate(x)),
}
GEMMA4 = COMMON | NORMS | HEAD_NORMS | WINDOW | GEMMA | {
    "norm of the values": word(
        "rms_norm_values", lambda true, p, qkv, heads, epsilon, from_keys: true(p, qkv, heads, epsilon, True) if from_keys else qkv
    ),
    "part of a head that rotates": spec(divided=lambda divided: False),
    "base of layers with a window": spec(window_base=lambda base: 5000.0),
    "factor of a layer": word(
        "add_normalized", lambda true, p, x, made, weight, epsilon, scale=1.0: true(p, x, made, weight, epsilon)
    ),
}  # fmt: skip
YARN = {
    "rope scaling": spec(rope=plain_rope),
    "scale of the rotation": spec(rope=changed(scale=1.0)),
}


def twice_as_many(rope):
    """Pairs turn."""
    return plain_rope(changed(frequencies=rope.frequencies.repeat(2))(rope))


HALF_ROTATED = {"part of a head that rotates": spec(rope=twice_as_many)}
HYBRID = HALF_ROTATED | {
    "gate of attention": word("sigmoid_gate", lambda true, p, x, gate: x),
    "gated norm": tensors("ssm_norm", 1),
    "bias of the decay": tensors("ssm_dt.bias", 0),
    "decay": tensors("ssm_a", 0),
}
TILED = {
    "order of the value heads": word(
        "gated_delta",
        lambda true, p, qkv, beta, alpha, decay, bias, heads, *rest: true(
            p, qkv, beta, alpha, decay, bias, changed(all_keys=1)(heads), *rest
        ),
    ),
    "beta beside alpha": word("gated_delta", lambda true, p, qkv, beta, alpha, *rest: true(p, qkv, alpha, beta, *rest)),
}


def router(**changes):
    return spec(router=changed(**changes))


ROUTER = {
    "all experts of a token": spec(router=lambda router: changed(used=router.used - 1)(router)),
    "normalised shares": router(normalize=False),
    "function of the router": spec(
        router=lambda router: changed(function={"sigmoid": "softmax"}.get(router.function, "sigmoid"))(router)
    ),
    "bias of the router": tensors("exp_probs_b", 0),
    "bias of the choice alone": word(
        "route_wanted", lambda true, p, scores, router, bias: p.route(p.add_bias(scores, bias), router.used, router.normalize)
    ),
}
FACTOR = {"factor of the shares": router(factor=1.0)}
UNGATED = {
    "shared experts": word("add_experts", lambda true, p, x, h, routes, down, shared, **named: true(p, x, h, routes, down, **named))
}
SINKS = {"sinks": tensors("attn_sinks", -1e4)}
LATENT = {"weight of the latent norm": tensors("attn_kv_a_norm", 1)}
YARN_SCORES = {
    "scale of the scores": spec(rope=changed(score_scale=1.0)),
    "rope scaling": spec(rope=lambda rope: changed(frequencies=plain_rope(rope).frequencies)(rope)),
}


def own_layers_alone(true, p, queries, heads, scale, cache, chosen, value_size):
    """Layers without an indexer see all."""
    if cache.index:
        return true(p, queries, heads, scale, cache, chosen, value_size)
    return p.attention(queries, heads, scale, cache, value_size=value_size)


DELTA = (
    NORMS
    | FACTOR
    | UNGATED
    | LATENT
    | {
        "gate": GATE,
        "all experts of a token": ROUTER["all experts of a token"],
        "function of the router": ROUTER["function of the router"],
        "bias of the router": ROUTER["bias of the router"],
        "normalised shares": ROUTER["normalised shares"],
        "scale of the scores": SCORES,
        "gated norm": tensors("ssm_norm", 1),
        "gate of the norm": word("gated_rms_norm", lambda true, p, *args, by_sigmoid: true(p, *args)),
        "bias of the decay": tensors("ssm_dt.bias", 0),
        "decay": tensors("ssm_a", 0),
        "decay of a token": word(
            "gated_delta",
            lambda true, p, qkv, beta, alpha, *rest: true(p, qkv, beta, qkv.columns(0, alpha.width), *rest),
        ),
        "convolution": word("causal_conv", lambda true, p, qkv, width, state, q, k, v: true(p, qkv, width, state, k, q, v)),
    }
)
INDEXED = {
    "tokens that are chosen": spec(top=lambda top: 1 << 20),
    "number of them": spec(top=lambda top: top + 3),
    "pairs of the indexer": word(
        "choose_tokens", lambda true, p, q, weights, angles, neighbours, *rest: true(p, q, weights, angles, not neighbours, *rest)
    ),
    "weight of the indexer's norm": tensors("indexer.k_norm.weight", 1),
    "bias of the indexer's norm": tensors("indexer.k_norm.bias", 0),
}


def in_window(change):
    """Of layers that see the last tokens, change(their number)."""
    return word(
        "compressed_attention",
        lambda true, p, q, heads, scale, sinks, tokens, *rest: true(
            p, q, heads, scale, sinks, changed(window=change(tokens.window))(tokens), *rest
        ),
    )


def turned_apart(true, p, both, places, norm, epsilon, frequencies, *rest, **more):
    """Entries, from what would have them turn."""
    return true(p, both, places, norm, epsilon, 0 * frequencies, *rest, **more)


DEEPSEEK4 = {
    "window": in_window(lambda window: 1 << 20),
    "window of 20": in_window(lambda window: window + 1),
    "scale of the scores": word(
        "compressed_attention", lambda true, p, q, heads, scale, *rest: true(p, q, heads, scale * sqrt(2), *rest)
    ),
    "entries": word("compressed_attention", lambda true, p, q, heads, scale, sinks, tokens, *rest: true(
        p, q, heads, scale, sinks, tokens, None, None
    )),
    "entries that are chosen": spec(top=lambda top: 1 << 20),
    "number of them": spec(top=lambda top: top + 3),
    "rotation of entries": word("append_entries", turned_apart),
    "rotation of the queries": word("rotate_tails", lambda true, p, x, *rest: x if "q_b" in x.name else true(p, x, *rest)),
    "rotation that is turned back": word(
        "rotate_tails", lambda true, p, x, *rest: x if "attention" in x.name else true(p, x, *rest)
    ),
    "places in an entry": tensors("attn_compressor_ape", 0),
    "weight of the entries' norm": tensors("attn_compressor_norm", 1),
    "places in an entry of the indexer": tensors("indexer_compressor_ape", 0),
    "weight of the norm of the indexer's entries": tensors("indexer_compressor_norm", 1),
    "base of layers with entries": spec(far=lambda far: plain_rope(far)),
    "base of the other layers": spec(rope=lambda rope: changed(frequencies=rope.frequencies**0.8)(rope)),
    "weight of the queries' norm": tensors("attn_q_a_norm", 1),
    "norm of heads": word("rms_norm_heads", lambda true, p, q, *rest: q),
    "all experts of a token": ROUTER["all experts of a token"],
    "normalised shares": ROUTER["normalised shares"],
    "function of the router": router(function="sigmoid"),
    "bias of the router": ROUTER["bias of the router"],
    "experts that a table lists": word("route_listed", lambda true, p, scores, router, table: p.route_wanted(scores, router, None)),
    "shared experts": word("experts_product", lambda true, p, h, routes, down, shared: true(p, h, routes, down)),
    "limit of the gates": spec(limits=lambda limits: (1e6,) * len(limits)),
    "limit of the shared gates": spec(shared_limits=lambda limits: (1e6,) * len(limits)),
    "up without 1": word("clamped_gate", lambda true, p, x, alpha, limit, shift: true(p, x, alpha, limit)),
    "rounds of the mixing": spec(rounds=lambda rounds: rounds - 1),
    "least weight of streams": spec(least=lambda least: 1e-6),
    "bases of attention's streams": tensors("hc_attn_base", 0),
    "scales of attention's streams": tensors("hc_attn_scale", 1),
    "bases of the experts' streams": tensors("hc_ffn_base", 0),
    "scales of the experts' streams": tensors("hc_ffn_scale", 1),
    "bases of the last streams": tensors("output_hc_base", 0),
    "scale of the last streams": tensors("output_hc_scale", 1),
}  # fmt: skip


def first_stream(true, p, x, weight, epsilon):
    """Instead of the mean of all."""
    import numpy as np

    constant = p._constant
    p._constant = lambda shares: constant(np.array([1, 0, 0, 0], np.float32))
    made = true(p, x, weight, epsilon)
    p._constant = constant
    return made


def keys_as_gates(true, p, h, *weights, **more):
    """Of the runs of an indexer."""
    if "compressor_gate" in weights[-1].name:
        weights = (weights[0], weights[0])
    return true(p, h, *weights, **more)


MULTIPLIERS = {
    "factor of the embedding": spec(embedding_scale=lambda scale: 1.0),
    "scale of the scores": spec(score_scale=lambda scale: 0.25),
    "factor of what is added": spec(residual_scale=lambda scale: 1.0),
    "factor of the logits": spec(logit_scale=lambda scale: 1.0),
}
OLMO = COMMON | {
    "gate": GATE,
    "output_norm": tensors("output_norm", 1),
    "norm after a block": GEMMA["norm after a block"],
    "weight of the norm after attention": tensors("post_attention_norm", 1),
    "weight of the norm after the FFN": tensors("post_ffw_norm", 1),
    "weight of q's norm": tensors("attn_q_norm", 1),
    "weight of k's norm": tensors("attn_k_norm", 1),
    "norm over all heads": word(
        "rms_norm_all_heads", lambda true, p, qkv, heads, all_heads, *rest: p.rms_norm_heads(qkv, heads, *rest)
    ),
}

FEATURES = {
    "llama": COMMON | NORMS | {"rope scaling": spec(factors=lambda factors: ()), "gate": GATE},
    "llama-linear": {"rope scaling": spec(rope=plain_rope)},
    "qwen2": COMMON | NORMS | QKV_BIAS | YARN | {"whole pairs in YaRN": spec(rope=yarn_rope(32.0, 1.0, False)), "gate": GATE},
    "qwen3": COMMON | NORMS | HEAD_NORMS | YARN | {
        "fast bound of YaRN": spec(rope=yarn_rope(32.0, 0.25, True)),
        "slow bound of YaRN": spec(rope=yarn_rope(2.0, 1.0, True)),
        "gate": GATE,
    },
    "qwen3moe": COMMON | NORMS | HEAD_NORMS | MIXTURE,
    "command-r": COMMON | LAYER_NORM | {"gate": GATE},
    "command-r-plus": LAYER_NORM | {
        "norm of heads": word("layer_norm_heads", lambda true, p, qkv, *rest: qkv),
        "mean of the norm of heads": word("layer_norm_heads", lambda true, p, *args: p.rms_norm_heads(*args)),
        "weight of q's norm": tensors("attn_q_norm", 1),
        "weight of k's norm": tensors("attn_k_norm", 1),
    },
    "cohere2": COMMON | LAYER_NORM | WINDOW | {"layers without positions": word("rotate_and_append", all_rotated), "gate": GATE},
    "cohere2moe": COMMON | LAYER_NORM | WINDOW | UNGATED | {
        "gate": GATE,
        "layers without positions": word("rotate_and_append", all_rotated),
        "positions of a layer without experts": word(
            "rotate_and_append",
            lambda true, p, qkv, heads, angles, cache, neighbours: true(
                p, qkv, heads, None if cache.sees_all else angles, cache, neighbours=neighbours
            ),
        ),
        "mean of experts and shared ones": word("add_experts", lambda true, *args, factor, **named: true(*args, **named)),
        "attention beside experts": word("add_experts", lambda true, *args, beside, **named: true(*args, **named)),
        "attention without the factor": word(
            "add_experts", lambda true, *args, beside, **named: true(*args, beside, **named)
        ),
    } | {key: ROUTER[key] for key in ("all experts of a token", "normalised shares", "function of the router")},
    "gemma2": COMMON | NORMS | WINDOW | GEMMA | {
        "cap of the scores": spec(score_cap=lambda cap: 0.0),
        "cap of the logits": spec(logit_cap=lambda cap: 0.0),
    },
    "gemma3": COMMON | NORMS | HEAD_NORMS | WINDOW | GEMMA | {
        "rope scaling": spec(rope=lambda rope: changed(frequencies=rope.frequencies * 8)(rope)),
        "base of layers with a window": spec(window_base=lambda base: 5000.0),
    },
    "gemma4": GEMMA4 | {"cap of the logits": spec(logit_cap=lambda cap: 0.0)} | {
        "all experts of a token": MIXTURE["all experts of a token"],
        "experts": word(
            "add_normalized",
            lambda true, p, x, made, weight, *rest: x if "norm_2" in weight.name else true(p, x, made, weight, *rest),
        ),
        "weight of the norm before the experts": tensors("pre_ffw_norm_2", 1),
        "weight of the norm after the experts": tensors("post_ffw_norm_2", 1),
        "norm beside the experts": word("normalized", lambda true, p, made, *rest: made),
        "weight of the norm beside the experts": tensors("post_ffw_norm_1", 1),
        "factors of the router's input": tensors("ffn_gate_inp.scale", 1),
        "size of the router's input": word(
            "rms_norm", lambda true, p, x, weight, epsilon, logits_only=False, scale=1.0: true(p, x, weight, epsilon, logits_only)
        ),
        "factors of the experts": tensors("ffn_down_exps.scale", 1),
    },
    "gemma4-dense": GEMMA4,
    "gemma4-e2b": {
        "which layer is borrowed from": word("attention", first_layers_cache),
        "scores of a layer that borrows": word(
            "attention",
            lambda true, p, qkv, heads, scale, *rest, **more: true(
                p, qkv, heads, scale / 2 if borrows(qkv, heads) else scale, *rest, **more
            ),
        ),
        "rotation of a layer that borrows": word("rotate_and_append", queries_as_they_are),
        "norm of a layer that borrows": word(
            "rms_norm_heads",
            lambda true, p, qkv, heads, weight, *rest: (
                qkv if borrows(qkv, heads) and "attn" in weight.name else true(p, qkv, heads, weight, *rest)
            ),
        ),
        "part for the token alone": word("gelu_gate", lambda true, p, x, up=None: true(p, x) if up is None else up),
        "table of the layers": word("embed_columns", lambda true, p, *args, scale: true(p, *args, scale=0.0)),
        "factor of the table": word("embed_columns", lambda true, p, *args, scale: true(p, *args, scale=scale / 2)),
        "projection of the embedding": word("add_scaled", lambda true, p, x, other, factor: x),
        "factor of the projection": word("add_scaled", lambda true, p, x, other, factor: true(p, x, other, factor * 2)),
        "weight of the projection's norm": tensors("per_layer_proj_norm", 1),
        "weight of the last norm of a layer": tensors("\\.post_norm", 1),
        "factor of a layer": word(
            "add_normalized", lambda true, p, x, made, weight, epsilon, scale=1.0: true(p, x, made, weight, epsilon)
        ),
    },
    "qwen2moe": COMMON | NORMS | QKV_BIAS | MIXTURE | SHARED,
    "qwen3next": COMMON | NORMS | HEAD_NORMS | MIXTURE | SHARED | HYBRID,
    "qwen35": COMMON | NORMS | HEAD_NORMS | HYBRID | TILED | {"gate": GATE},
    "qwen35moe": COMMON | NORMS | HEAD_NORMS | MIXTURE | SHARED | HYBRID | TILED,
    "glm4moe": COMMON | NORMS | HEAD_NORMS | QKV_BIAS | ROUTER | FACTOR | UNGATED | HALF_ROTATED | {"gate": GATE},
    "minimax-m2": COMMON | NORMS | ROUTER | HALF_ROTATED | {
        "gate": GATE,
        "weight of q's norm": tensors("attn_q_norm", 1),
        "weight of k's norm": tensors("attn_k_norm", 1),
        "norm": word("rms_norm_all_heads", lambda true, p, qkv, *rest: qkv),
        "norm over all heads": word(
            "rms_norm_all_heads", lambda true, p, qkv, heads, all_heads, *rest: p.rms_norm_heads(qkv, heads, *rest)
        ),
    },
    "dots1": COMMON | NORMS | HEAD_NORMS | ROUTER | FACTOR | UNGATED | {"gate": GATE, "groups of experts": router(groups_used=4)},
    "ernie4_5-moe": COMMON | NORMS | ROUTER | UNGATED | {"gate": GATE},
    "hy_v3": COMMON | NORMS | HEAD_NORMS | ROUTER | FACTOR | UNGATED | {"gate": GATE},
    "mimo2": COMMON | NORMS | WINDOW | ROUTER | HALF_ROTATED | SINKS | {
        "gate": GATE, "groups of experts": router(groups_used=4),
        "base of layers with a window": spec(window_base=lambda base: 1000.0),
        "factor of what attention adds": spec(attended_scale=lambda scale: 1.0),
    },
    "bailingmoe2": COMMON | NORMS | HEAD_NORMS | ROUTER | FACTOR | UNGATED | HALF_ROTATED | {
        "gate": GATE, "groups of experts": router(groups_used=4),
    },
    "llama4": COMMON | NORMS | WINDOW | UNGATED | {
        "gate": GATE, "rope scaling": spec(divided=lambda divided: False),
        "chunks": word("attention", window_for_chunk),
        "all experts of a token": ROUTER["all experts of a token"], "function of the router": ROUTER["function of the router"],
        "norm of heads": spec(heads_normalized=lambda normalized: False),
        "layers without positions": spec(still=lambda still: ()),
        "temperature": spec(temper=lambda temper: None),
        "length of the temperature": spec(temper=lambda temper: changed(every=2 * temper.every)(temper)),
        "positions from 1 on in the temperature": word(
            "temper_heads", lambda true, p, qkv, heads, every, by, shift: true(p, qkv, heads, every, by)
        ),
        "input of the experts is weighed": word("weigh_places", lambda true, p, x, routes: (x, routes)),
    },
    "deepseek2": NORMS | ROUTER | FACTOR | UNGATED | LATENT | YARN_SCORES | {
        "gate": GATE,
        "groups of experts": router(groups_used=4),
        "weight of the queries' norm": tensors("attn_q_a_norm", 1),
    },
    "deepseek2-lite": FACTOR | UNGATED | LATENT | YARN_SCORES | {
        "all experts of a token": ROUTER["all experts of a token"],
        "function of the router": ROUTER["function of the router"],
        "shares as they are": router(normalize=True),
    },
    "deepseek2-v2": FACTOR | {
        "groups of experts": router(groups_used=4), "groups by one expert": router(pairs=True),
        "weight of the queries' norm": tensors("attn_q_a_norm", 1),
    },
    "deepseek2-flash": ROUTER | FACTOR | UNGATED | LATENT,
    "mistral4": UNGATED | LATENT | YARN_SCORES | {
        "function of the router": ROUTER["function of the router"],
        "normalised shares": ROUTER["normalised shares"],
        "queries that grow with their position": spec(heat=lambda heat: (0.0, 1)),
        "tokens until queries grow": spec(heat=lambda heat: (heat[0], 2 * heat[1])),
    },
    "deepseek32": NORMS | ROUTER | FACTOR | UNGATED | LATENT | YARN_SCORES | INDEXED,
    "glm-dsa": FACTOR | UNGATED | LATENT | INDEXED | {"choice of an earlier layer": word("sparse_attention", own_layers_alone)},
    "kimi-linear": DELTA | {
        "scale of the scores": LATENT_SCORES,
        "keys that do not turn": word("rotation", lambda true, p, frequencies, scale: true(p, frequencies + 0.01, scale)),
    },
    "bailingmoe3": DELTA | {
        "scale of the scores": LATENT_SCORES,
        "groups of experts": router(groups_used=4),
        "rotation": spec(rope=lambda rope: changed(frequencies=0 * rope.frequencies)(rope)),
        "bound of the decays": spec(bound=lambda bound: bound / 2),
        "gates of heads": spec(gated=lambda gated: False),
        "weight of the queries' norm": tensors("attn_q_a_norm", 1),
    },
    "deepseek4": NORMS | FACTOR | LATENT | SINKS | DEEPSEEK4,
    "glm5-next": NORMS | FACTOR | LATENT | {key: DELTA[key] for key in (
        "gated norm", "gate of the norm", "bias of the decay", "decay", "decay of a token", "convolution",
    )} | {key: DEEPSEEK4[key] for key in (
        "weight of the queries' norm", "all experts of a token", "normalised shares", "bias of the router", "shared experts",
        "limit of the gates", "limit of the shared gates", "up without 1", "rounds of the mixing", "least weight of streams",
        "bases of attention's streams", "scales of attention's streams", "bases of the experts' streams",
        "scales of the experts' streams",
    )} | {
        "function of the router": ROUTER["function of the router"],
        "bias of the choice alone": ROUTER["bias of the choice alone"],
        "scale of the scores": LATENT_SCORES,
        "bound of the decays": spec(bound=lambda bound: bound / 2),
        "tokens that are chosen": spec(top=lambda top: 1 << 20),
        "number of them": spec(top=lambda top: top + 1),
        "choice of an earlier layer": word("sparse_attention", own_layers_alone),
        "gates of a run": word("matmul", keys_as_gates),
        "places in a run": tensors("indexer_compressor_ape", 0),
        "weight of the indexer's norm": tensors("indexer.k_norm.weight", 1),
        "bias of the indexer's norm": tensors("indexer.k_norm.bias", 0),
        "mean of the streams": word("mean_streams", first_stream),
    },
    "smollm3": COMMON | NORMS | {"gate": GATE, "layers without positions": word("rotate_and_append", all_rotated)},
    "olmo2": OLMO,
    "olmo3": OLMO | WINDOW | YARN | {
        "rotation of layers with a window": word("rotation", lambda true, p, frequencies, scale=1.41: true(p, frequencies, scale)),
    },
    "granite": COMMON | NORMS | MULTIPLIERS | {"gate": GATE},
    "granitemoe": NORMS | MULTIPLIERS | {
        "gate": GATE, "all experts of a token": MIXTURE["all experts of a token"],
        "normalised shares": word("route", lambda true, p, scores, used, normalize: true(p, scores, used, False)),
    } | UNGATED,
    "phi3": COMMON | NORMS | {
        "part of a head that rotates": spec(rope=twice_as_many, factors=lambda factors: ()),
        "gate": GATE, "scale of the rotation": spec(rope=changed(scale=1.0)),
        "factors of long texts": spec(factors=lambda factors: factors[:1]), "factors": spec(factors=lambda factors: ()),
    },
    "phi3-short": {
        "factors of short texts": spec(factors=lambda factors: factors[1:]), "factors": spec(factors=lambda factors: ()),
    },
    "mistral3": COMMON | NORMS | YARN | {
        "gate": GATE, "temperature": spec(temper=lambda temper: None),
        "length of the temperature": spec(temper=lambda temper: changed(every=2 * temper.every)(temper)),
        "fast bound of YaRN": spec(rope=yarn_rope(32.0, 0.25, True)),
        "log multiplier of YaRN": spec(rope=lambda rope: changed(scale=0.1 * log(4.0) + 1)(rope)),
    },
    "gpt-oss": COMMON | NORMS | QKV_BIAS | WINDOW | YARN | SINKS | {
        "all experts of a token": MIXTURE["all experts of a token"],
        "bias of attention's output": tensors("attn_output.bias", 0),
        "bias of the router": tensors("ffn_gate_inp.bias", 0),
        "bias of the experts' gates": tensors("ffn_gate_exps.bias", 0),
        "bias of the experts' up": tensors("ffn_up_exps.bias", 0),
        "bias of the experts' down": tensors("ffn_down_exps.bias", 0),
        "alpha of the gate": word("clamped_gate", lambda true, p, x, alpha, limit: true(p, x, 1.0, limit)),
        "limit of the gate": word("clamped_gate", lambda true, p, x, alpha, limit: true(p, x, alpha, 1e9)),
        "up + 1": word("clamped_gate", lambda true, p, x, alpha, limit: p.silu_gate(x)),
        "parts of pairs in YaRN": spec(rope=yarn_rope(8.0, 1.0, True)),
    },
}  # fmt: skip
