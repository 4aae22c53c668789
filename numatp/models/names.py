"""What Hugging Face folders of many architectures call things: keys of config.json and tensors, by GGUF's names."""

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.gguf_header import quote
from numatp.files.huggingface import CannotComputeError, Order, Stored, numbered_rows
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile

Keys = dict[str, str | Callable[[Config], Any]]


def rotation(layers: str | None = None) -> Keys:
    """GGUF's keys of the rotation; layers: of which kind, where each has its own."""

    def key(name: str, *types: str) -> Callable[[Config], Any]:
        """The parameter of that name, for some types of scaling only."""

        def read(config: Config) -> Any:
            found = rope_parameters(config, layers)
            return found.get(name) if not types or found["rope_type"] in types else None

        return read

    return {
        "rope.dimension_count": lambda config: _whole_heads(rope_parameters(config, layers)),
        "rope.freq_base": key("rope_theta"),
        "rope.scaling.type": lambda config: rope_type(rope_parameters(config, layers)),
        "rope.scaling.factor": lambda config: _factor(config, rope_parameters(config, layers)),
        "rope.scaling.original_context_length": key("original_max_position_embeddings", "yarn", "llama3"),
        "rope.scaling.yarn_beta_fast": key("beta_fast", "yarn"),
        "rope.scaling.yarn_beta_slow": key("beta_slow", "yarn"),
        "rope.scaling.yarn_attn_factor": lambda config: attention_factor(config, rope_parameters(config, layers)),
        "rope.scaling.yarn_truncate": lambda config: _truncate(rope_parameters(config, layers), layers),
    }


def _whole_heads(rope: Config) -> None:
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise CannotComputeError("rotates a part of each head's values ('partial_rotary_factor')")


def part_of_heads(config: Config) -> int:
    """As rope.dimension_count: how many of a head's values turn."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(size * rope_parameters(config).get("partial_rotary_factor", 1))


def rope_type(rope: Config) -> Any:
    """As GGUF's rope.scaling.type. A rotation in three dimensions ("mrope") turns texts like any other, as all three are alike; one
    that changes with the length ("dynamic") does so beyond the trained context, which no cache goes.
    """
    return "none" if rope["rope_type"] in ("default", "mrope", "dynamic") else rope["rope_type"]


def _factor(config: Config, rope: Config) -> Any:
    if rope["rope_type"] == "yarn" and "factor" in rope and rope["factor"] is None:
        return config["max_position_embeddings"] / rope["original_max_position_embeddings"]
    return None if rope_type(rope) == "none" else rope["factor"]


def _truncate(rope: Config, layers: str | None) -> Any:
    if rope["rope_type"] != "yarn":
        return None
    if layers and rope.get("truncate") is False:  # transformers 5 reads it in another place there
        raise CannotComputeError("scales the rotation of some layers by YaRN that ends between pairs ('truncate')")
    return rope.get("truncate", True)


def attention_factor(config: Config, rope: Config) -> Any:
    """What YaRN multiplies the turned values by, where config.json says it; mscale and mscale_all_dim count only together."""
    if rope["rope_type"] != "yarn":
        return None
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None or not over or not under:
        return rope.get("attention_factor")
    over, under = (0.1 * scale * log(max(_factor(config, rope), 1)) + 1 for scale in (over, under))
    return over / under


# What nearly all architectures have under these names.
CONFIG: Keys = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    **rotation(),
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ATTENTION = {
    f"blk.{{layer}}.{ours}.weight": f"model.layers.{{layer}}.{theirs}.weight"
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
    )
}
QKV_BIAS = {f"blk.{{layer}}.attn_{name}.bias": f"model.layers.{{layer}}.self_attn.{name}_proj.bias" for name in "qkv"}
FFN = {f"blk.{{layer}}.ffn_{name}.weight": f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
EXPERTS = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": f"model.layers.{{layer}}.mlp.experts.{{expert}}.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp.weight": "model.layers.{layer}.mlp.gate.weight"}


def half_of_experts(which: int) -> Order:
    """Of every expert the first or the second half of its rows, where a folder has gate above up."""

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        name = file.text("general.architecture")
        height = file.count_of_layers(f"{name}.expert_feed_forward_length")
        rows = numbered_rows(file, file.count(f"{name}.expert_count"), 2, height)
        return rows[:, which], rows.size

    return read


def whole_experts(file: ModelFile) -> tuple[np.ndarray, int]:
    """The rows of every expert's down."""
    name = file.text("general.architecture")
    rows = numbered_rows(file, file.count(f"{name}.expert_count"), file.count(f"{name}.embedding_length"))
    return rows, rows.size


# GGUF's part of a name: what folders call the matrices of all experts, and their rows.
TOGETHER = {
    "gate": ("gate_up_proj", half_of_experts(0)), "up": ("gate_up_proj", half_of_experts(1)), "down": ("down_proj", whole_experts),
}  # fmt: skip
# Each expert's matrices as tensors of their own, or those of all experts in one.
EITHER = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(
        EXPERTS[f"blk.{{layer}}.ffn_{name}_exps.weight"], together=(f"model.layers.{{layer}}.mlp.experts.{theirs}", rows)
    )
    for name, (theirs, rows) in TOGETHER.items()
}


# Values of keys of any class: nothing else is computed.
ONLY = {"is_causal": True}
MIXTURE: Keys = {
    "expert_count": lambda config: config.get("num_experts", config.get("num_local_experts")),
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
SHARED_EXPERT = {
    f"blk.{{layer}}.ffn_{name}_shexp.weight": f"model.layers.{{layer}}.mlp.shared_expert.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp_shexp.weight": "model.layers.{layer}.mlp.shared_expert_gate.weight"}


def layer_types(kind: str, period: str = "") -> Callable[[Config], Any]:
    """A flag per layer: whether it is of that kind, and not one that sees all tokens; period: what older folders call the number
    of layers after which one is not, if they have that."""

    def read(config: Config) -> Any:
        kinds = config.get("layer_types")
        if kinds is None:
            return config.get(period) if period else None
        others = [one for one in kinds if one not in (kind, "full_attention")]
        if others:
            raise CannotComputeError(f"has layers of kind {quote(others[0])} ('layer_types')")
        return [one == kind for one in kinds]

    return read


def windows(slides: Callable[[Config, int], bool], listed: bool = True) -> Keys:
    """GGUF's keys of models whose layers see a window of tokens only where `use_sliding_window` is true; slides(config, layer):
    whether that layer does, where `layer_types` does not say. listed: `layer_types` counts also where windows are used."""

    def pattern(config: Config) -> list[bool] | None:
        used = config["use_sliding_window"] and config["sliding_window"] is not None
        flags = layer_types("sliding_attention")(config)
        if flags is None or (used and not listed):
            flags = [bool(used and slides(config, layer)) for layer in range(config["num_hidden_layers"])]
        return flags if any(flags) else None

    def window(config: Config) -> Any:
        if pattern(config) is None:
            return None
        if not config["use_sliding_window"] or not config["sliding_window"]:
            raise CannotComputeError("has layers that see a window, and no window ('use_sliding_window', 'sliding_window')")
        return config["sliding_window"]

    return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


# Whether layers see a window, and what GGUF files of those models mean, which have no word for it.
USE_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
NO_WINDOWS = {"rope.scaling.yarn_truncate": True, "attention.sliding_window": 0, "attention.sliding_window_pattern": []}


def above_max_window_layers(config: Config, layer: int) -> bool:
    return bool(layer >= config["max_window_layers"])


def plus_one(name: str) -> Stored:
    """A norm that multiplies by 1 + weight."""
    return Stored(name, values=lambda weight: weight + np.float32(1))


# Norms before and after attention and feed-forward, with 1 added in GGUF.
AROUND_BLOCKS = {
    f"blk.{{layer}}.{ours}.weight": plus_one(f"model.layers.{{layer}}.{theirs}.weight")
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    )
}
