"""What folders of DeepSeek-V4 call things: names of DeepSeek's own for tensors; for keys of config.json those or transformers'."""

from collections.abc import Callable
from typing import Any

from numatp.files.folder import rope_differs, rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace, Stored
from numatp.files.layouts import Config
from numatp.models.names import ONLY, Keys, rope_type

OVERLAPPING = 4  # tokens of an entry that takes the tokens of the one before, too, and that an indexer chooses
ROOT_OF_SOFTPLUS = 4  # of expert_gating_func
NEAR, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = {0: NEAR, 4: SPARSE, 128: HEAVY}  # by compress_ratios


def _rates(config: Config) -> dict[str, int]:
    """Tokens of an entry, by kind of layer."""
    rates = {SPARSE: 4, HEAVY: 128} if config.get("compress_rates") is None else dict(config["compress_rates"])
    for kind, older in ((SPARSE, "compress_rate_csa"), (HEAVY, "compress_rate_hca")):
        if config.get(older) is not None:
            rates[kind] = config[older]
    if rates[SPARSE] != OVERLAPPING or rates[HEAVY] == OVERLAPPING:
        raise CannotComputeError(f"has entries of {rates[SPARSE]} and {rates[HEAVY]} tokens ('compress_rates')")
    return {**rates, NEAR: 0}


def _ratios(config: Config) -> list[int]:
    """As attention.compress_ratios."""
    layers, kinds, ratios = config["num_hidden_layers"], config.get("layer_types"), config.get("compress_ratios")
    if kinds is None and ratios is not None:
        kinds = [KINDS.get(ratio, str(ratio)) for ratio in ratios]
    if kinds is None:
        kinds = [SPARSE if layer % 2 and layer > 1 else HEAVY for layer in range(layers)]
    rates = _rates(config)
    others = [kind for kind in kinds if kind not in rates]
    if others:
        raise CannotComputeError(f"has layers of kind {others[0]!r} ('layer_types', 'compress_ratios')")
    return [rates[kind] for kind in kinds]


def _listed(config: Config) -> int:
    """Layers whose experts a table lists."""
    layers, kinds = config["num_hidden_layers"], config.get("mlp_layer_types")
    if kinds is None:
        count = config.get("num_hash_layers")
        return min(layers, 3 if count is None else count)
    listed = kinds.count("hash_moe")
    if kinds[:layers] != (["hash_moe"] * listed + ["moe"] * layers)[:layers]:
        raise CannotComputeError("has layers whose experts a table lists behind others ('mlp_layer_types')")
    return min(int(listed), layers)


def _is_apart(config: Config) -> bool:
    """Whether config.json says apart how layers with entries rotate, and those without."""
    if not rope_differs(config):
        return False
    if config["rope_parameters"].keys() != {"main", "compress"} or config.get("rope_scaling"):
        raise CannotComputeError("rotates other layers than with and without entries, or twice ('rope_parameters', 'rope_scaling')")
    return True


def _near_rope(config: Config) -> Config:
    return rope_parameters(config, "main") if _is_apart(config) else {"rope_type": "default", "rope_theta": config["rope_theta"]}


def _far_rope(config: Config) -> Config:
    found = rope_parameters(config, "compress")
    if not _is_apart(config):
        given = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if found.get("original_max_position_embeddings") != given.get("original_max_position_embeddings"):
            raise CannotComputeError("says twice which texts it was first trained for ('original_max_position_embeddings')")
        found = found | {"rope_theta": config["compress_rope_theta"]}
    if found["rope_type"] not in ("default", "yarn"):
        raise CannotComputeError(f"scales the rotation by {found['rope_type']!r} ('rope_type')")
    if found["rope_type"] == "yarn" and (found.get("factor") is None or found.get("truncate") is False):
        raise CannotComputeError("scales the rotation by YaRN without a factor, or between pairs ('factor', 'truncate')")
    return found


def _near_base(config: Config) -> Any:
    rope = _near_rope(config)
    if rope["rope_type"] != "default":
        raise CannotComputeError("scales the rotation of layers without entries ('rope_parameters')")
    return rope["rope_theta"]


def _far(name: str) -> Callable[[Config], Any]:
    def read(config: Config) -> Any:
        rope = _far_rope(config)
        if rope.get("attention_factor") not in (None, 1):
            raise CannotComputeError("scales turned values ('attention_factor')")
        return rope.get(name) if rope["rope_type"] == "yarn" else None

    return read


def _rotated(config: Config) -> int:
    part = config.get("partial_rotary_factor")
    if part is None:
        rotated = config.get("qk_rope_head_dim")
        part = 64 / 512 if rotated is None else rotated / config["head_dim"]
    size = int(config["head_dim"] * part)
    for rope in (_near_rope(config), _far_rope(config)):
        if int(config["head_dim"] * rope.get("partial_rotary_factor", part)) != size:
            raise CannotComputeError("rotates another part of heads in some layers ('partial_rotary_factor')")
    return size


def _gate(config: Config) -> int:
    if config["scoring_func"] != "sqrtsoftplus":
        raise CannotComputeError(f"routes by {config['scoring_func']!r} ('scoring_func')")
    return ROOT_OF_SOFTPLUS


def _limits(config: Config) -> list[float]:
    return [float(config["swiglu_limit"])] * int(config["num_hidden_layers"])


CONFIG: Keys = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "embedding_length_out": lambda config: config["hidden_size"] * config["hc_mult"],
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.sliding_window": "sliding_window",
    "attention.output_group_count": "o_groups",
    "attention.output_lora_rank": "o_lora_rank",
    "attention.compress_ratios": _ratios,
    "attention.compress_rope_freq_base": lambda config: _far_rope(config)["rope_theta"],
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "rope.dimension_count": _rotated,
    "rope.freq_base": _near_base,
    "rope.scaling.type": lambda config: rope_type(_far_rope(config)),
    "rope.scaling.factor": _far("factor"),
    "rope.scaling.original_context_length": _far("original_max_position_embeddings"),
    "rope.scaling.yarn_beta_fast": _far("beta_fast"),
    "rope.scaling.yarn_beta_slow": _far("beta_slow"),
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_gating_func": _gate,
    "swiglu_clamp_exp": _limits,
    "swiglu_clamp_shexp": _limits,
    "hash_layer_count": _listed,
    "hyper_connection.count": "hc_mult",
    "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters",
    "hyper_connection.epsilon": "hc_eps",
}
LAYER = "layers.{layer}"
ATTENTION = {
    "attn_q_a.weight": "wq_a.weight", "attn_q_a_norm.weight": "q_norm.weight", "attn_q_b.weight": "wq_b.weight",
    "attn_kv.weight": "wkv.weight", "attn_kv_a_norm.weight": "kv_norm.weight", "attn_sinks.weight": "attn_sink",
    "attn_output_a.weight": "wo_a.weight", "attn_output_b.weight": "wo_b.weight",
    "indexer.attn_q_b.weight": "indexer.wq_b.weight", "indexer.proj.weight": "indexer.weights_proj.weight",
} | {
    f"{ours}_{name}.weight": f"{theirs}.{last}"
    for ours, theirs in (("attn_compressor", "compressor"), ("indexer_compressor", "indexer.compressor"))
    for name, last in (("kv", "wkv.weight"), ("gate", "wgate.weight"), ("ape", "ape"), ("norm", "norm.weight"))
}  # fmt: skip
MATRICES = {"gate": "w1", "down": "w2", "up": "w3"}  # of an expert
NAMED = (
    {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight", "output.weight": "head.weight"}
    | {f"output_hc_{name}.weight": f"hc_head_{name}" for name in ("fn", "base", "scale")}
    | {f"blk.{{layer}}.{ours}": f"{LAYER}.attn.{theirs}" for ours, theirs in ATTENTION.items()}
    | {f"blk.{{layer}}.{block}_norm.weight": f"{LAYER}.{block}_norm.weight" for block in ("attn", "ffn")}
    | {
        f"blk.{{layer}}.hc_{block}_{name}.weight": f"{LAYER}.hc_{block}_{name}"
        for block in ("attn", "ffn")
        for name in ("fn", "base", "scale")
    }
    | {
        f"blk.{{layer}}.ffn_{ours}_exps.weight": f"{LAYER}.ffn.experts.{{expert}}.{theirs}.weight"
        for ours, theirs in MATRICES.items()
    }
    | {f"blk.{{layer}}.ffn_{ours}_shexp.weight": f"{LAYER}.ffn.shared_experts.{theirs}.weight" for ours, theirs in MATRICES.items()}
    | {
        "blk.{layer}.ffn_gate_inp.weight": f"{LAYER}.ffn.gate.weight",
        "blk.{layer}.exp_probs_b.bias": f"{LAYER}.ffn.gate.bias",
    }
)
TENSORS: dict[str, str | Stored] = {
    **NAMED,
    "blk.{layer}.ffn_gate_tid2eid.weight": Stored(f"{LAYER}.ffn.gate.tid2eid", whole=True),
}
HUGGING_FACE = HuggingFace(
    classes={
        "DeepseekV4ForCausalLM": {
            "max_position_embeddings": 1048576, "num_key_value_heads": 1, "head_dim": 512, "rms_norm_eps": 1e-6,
            "q_lora_rank": 1024, "sliding_window": 128, "o_groups": 8, "o_lora_rank": 1024, "compress_rope_theta": 160000.0,
            "rope_theta": 10000.0, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "n_shared_experts": 1,
            "routed_scaling_factor": 1.5, "norm_topk_prob": True, "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
            "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
        },
    },
    config=CONFIG,
    tensors=TENSORS,
    only=ONLY
    | {
        "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "norm_topk_prob": True, "num_key_value_heads": 1,
        "n_shared_experts": 1,
    },
    further=("mtp.*",),
    ropes=None,
)  # fmt: skip
