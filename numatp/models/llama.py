"""Llama 1-3, Mistral, SmolLM: blocks whose input is normalised (prenorm.py); Llama 3.1 divides the frequencies of the rotation."""

from typing import Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace, HuggingFaceFile
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, FFN, ONLY, Keys, rope_type
from numatp.models.prenorm import PRENORM_TENSORS, PrenormSpec, prenorm_forward, prenorm_rules, read_prenorm
from numatp.models.rope import llama3_factors, plain, read_base, read_factors
from numatp.models.spec import read_sizes


def _is_llama3(config: Config) -> bool:
    return bool(rope_parameters(config)["rope_type"] == "llama3")


def _window(config: Config) -> Any:
    """Of Mistral; Llama's class knows no such key, and models with it were trained without."""
    return config.get("sliding_window") if config["architectures"] == ["MistralForCausalLM"] else None


MAX_FACTOR = 1e6  # of a scaling; released ones have 8 and 32


def rope_factors(file: HuggingFaceFile) -> np.ndarray | None:
    """Llama 3.1's scaling, which GGUF has as a vector and folders as parameters."""
    if not _is_llama3(file.config):
        return None
    prefix = f"{file.text('general.architecture')}.rope"
    factor, low, high = (file.positive(f"{prefix}.scaling.{key}") for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = file.count(f"{prefix}.scaling.original_context_length")
    if not 1 <= factor <= MAX_FACTOR or low >= high:
        file.fail(f"scales its rotary embedding by {factor:g} between factors {low:g} and {high:g}; download the folder again")
    frequencies = plain(read_base(file, f"{prefix}.freq_base"), read_sizes(file).head_size)
    return llama3_factors(frequencies, factor, low, high, trained).astype(np.float32)


LLAMA3_CONFIG: Keys = CONFIG | {
    "rope.scaling.type": lambda config: "none" if _is_llama3(config) else rope_type(rope_parameters(config)),
    "rope.scaling.low_freq_factor": lambda config: rope_parameters(config).get("low_freq_factor"),
    "rope.scaling.high_freq_factor": lambda config: rope_parameters(config).get("high_freq_factor"),
}
SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
HUGGING_FACE = HuggingFace(
    classes={"LlamaForCausalLM": {"rms_norm_eps": 1e-6}, "MistralForCausalLM": {"rms_norm_eps": 1e-6, "sliding_window": 4096}},
    config=LLAMA3_CONFIG | {"attention.sliding_window": _window},
    tensors={**PRENORM_TENSORS, **FFN},
    computed={"rope_freqs.weight": rope_factors},
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    texts={
        "llama": ("LlamaForCausalLM", SIZES | {"intermediate_size": 11008, "max_position_embeddings": 2048}),
        "mistral": ("MistralForCausalLM", SIZES | {
            "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8,
        }),
    },
)  # fmt: skip


def read_spec(file: ModelFile) -> PrenormSpec:
    return read_prenorm(file, factors=("rope_freqs.weight",) if read_factors(file) else ())


rules, forward = prenorm_rules, prenorm_forward
