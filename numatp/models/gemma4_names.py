"""What Hugging Face folders of Gemma 4 call things (gemma4.py)."""

from typing import Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace, HuggingFaceFile, Stored
from numatp.files.layouts import Config
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY, TOGETHER

PERIOD = 6  # of six layers the last sees all tokens, where a folder does not say
STILL = 1e30  # what the frequencies of pairs that do not turn are divided by, in GGUF


def _slides(config: Config) -> list[bool]:
    """The last layer sees all tokens, whatever config.json says."""
    kinds = config.get("layer_types") or [
        "full_attention" if (layer + 1) % PERIOD == 0 else "sliding_attention" for layer in range(config["num_hidden_layers"])
    ]
    others = set(kinds) - {"sliding_attention", "full_attention"}
    if others:
        raise CannotComputeError(f"has layers of kind '{min(others)}' ('layer_types')")
    return [kind == "sliding_attention" for kind in kinds[:-1]] + [False]


def _of_full(config: Config, key: str, otherwise: Any) -> Any:
    """A size of layers that see all tokens. Newer folders say for each layer in what it differs from the others."""
    layers = config.get("per_layer_config")
    if layers is None:
        return otherwise
    values = {layer: of_layer.get(key, config[key]) for layer, of_layer in layers.items()}
    flags = _slides(config)
    wanted = {values.get(str(layer), config[key]) for layer, slides in enumerate(flags) if not slides}
    others = {values.get(str(layer), config[key]) for layer, slides in enumerate(flags) if slides}
    if len(wanted) != 1 or others - {config[key]} or {name for one in layers.values() for name in one} - PER_LAYER:
        raise CannotComputeError("has layers with sizes of their own ('per_layer_config')")
    return wanted.pop()


PER_LAYER = {"head_dim", "num_key_value_heads"}


def _kv_heads(config: Config) -> Any:
    shared = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    full = _of_full(config, "num_key_value_heads", shared or config["num_key_value_heads"])
    if full == config["num_key_value_heads"]:
        return full
    return [config["num_key_value_heads"] if slides else full for slides in _slides(config)]


def _head_size(config: Config) -> Any:
    return _of_full(config, "head_dim", config["global_head_dim"])


def _base(layers: str, *kinds: str) -> Any:
    def read(config: Config) -> Any:
        rope = _rope(config, layers)
        if rope["rope_type"] not in kinds:
            raise CannotComputeError(f"scales the rotation of some layers by '{rope['rope_type']}' ('rope_parameters')")
        return rope.get("rope_theta")

    return read


def _rope(config: Config, layers: str) -> Config:
    return rope_parameters(config if config.get("rope_parameters") else config | {"rope_parameters": ROPES}, layers)


def _causal(config: Config) -> Any:
    if config.get("use_bidirectional_attention") == "all":
        raise CannotComputeError("lets tokens see those behind them ('use_bidirectional_attention')")
    return config["sliding_window"]


def _turning(file: HuggingFaceFile) -> np.ndarray | None:
    """What the frequencies of layers that see all tokens are divided by: "proportional" turns the first pairs."""
    rope, pairs = _rope(file.config, "full_attention"), file.count("gemma4.attention.key_length") // 2
    if rope["rope_type"] != "proportional":
        return None
    part, factor = rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0)
    turned = int(part * 2 * pairs // 2)
    if not 0 <= turned <= pairs or not factor >= 1:
        file.fail(f"turns {part} of a head's values, {factor} times slower; download the folder again")
    return np.where(np.arange(pairs) < turned, factor, STILL).astype(np.float32)


def _ffn(config: Config) -> Any:
    """Layers that read the keys and values of others may have a network twice as wide."""
    width, layers = config["intermediate_size"], config["num_hidden_layers"]
    if not config.get("use_double_wide_mlp"):
        return width
    own = layers - (config.get("num_kv_shared_layers") or 0)
    return [width if layer < own else 2 * width for layer in range(layers)]


def _experts(key: str) -> Any:
    return lambda config: config[key] if config.get("enable_moe_block") else None


ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
LAYER = "model.layers.{layer}"
FOLDER = HuggingFace(
    classes={
        "Gemma4ForCausalLM": {
            "sliding_window": 512, "rms_norm_eps": 1e-6, "global_head_dim": 512, "hidden_size_per_layer_input": 256,
        },
    },
    config=CONFIG
    | {
        "feed_forward_length": _ffn,
        "attention.head_count_kv": _kv_heads,
        "attention.key_length": _head_size,
        "attention.value_length": _head_size,
        "attention.key_length_swa": "head_dim",
        "attention.value_length_swa": "head_dim",
        "attention.sliding_window": _causal,
        "attention.sliding_window_pattern": _slides,
        "attention.keys_are_values": lambda config: bool(config.get("attention_k_eq_v")),
        "attention.shared_kv_layers": lambda config: config.get("num_kv_shared_layers") or 0,
        "embedding_length_per_layer_input": lambda config: config.get("hidden_size_per_layer_input") or 0,
        "expert_count": _experts("num_experts"),
        "expert_used_count": _experts("top_k_experts"),
        "expert_feed_forward_length": _experts("moe_intermediate_size"),
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.dimension_count": _head_size,
        "rope.dimension_count_swa": "head_dim",
        "rope.freq_base": _base("full_attention", "proportional", "default"),
        "rope.freq_base_swa": _base("sliding_attention", "default"),
    },
    tensors=ENDS
    | ATTENTION
    | FFN
    | {f"blk.{{layer}}.attn_{name}_norm.weight": f"{LAYER}.self_attn.{name}_norm.weight" for name in "qk"}
    | {
        f"blk.{{layer}}.{ours}.weight": f"{LAYER}.{theirs}.weight"
        for ours, theirs in (
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
            ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
            ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
            ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
        )
    }
    | {
        "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
        "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
        "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
        "blk.{layer}.inp_gate.weight": f"{LAYER}.per_layer_input_gate.weight",
        "blk.{layer}.proj.weight": f"{LAYER}.per_layer_projection.weight",
        "blk.{layer}.post_norm.weight": f"{LAYER}.post_per_layer_input_norm.weight",
        "blk.{layer}.layer_output_scale.weight": f"{LAYER}.layer_scalar",
        "blk.{layer}.ffn_gate_inp.weight": f"{LAYER}.router.proj.weight",
        "blk.{layer}.ffn_gate_inp.scale": f"{LAYER}.router.scale",
        "blk.{layer}.ffn_down_exps.scale": f"{LAYER}.router.per_expert_scale",
    }
    | {
        f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(f"{LAYER}.experts.{theirs}", order=rows)
        for name, (theirs, rows) in TOGETHER.items()
    },
    computed={"rope_freqs.weight": _turning},
    only=ONLY | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    tied=True,
    ropes=True,
    texts=dict.fromkeys(
        ("gemma4_text", "gemma4_unified_text"),
        ("Gemma4ForCausalLM", {
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        }),
    ),
)  # fmt: skip
