"""Mistral Small 4: latent attention (latent.py) whose queries grow with their position, experts routed by a softmax."""

from functools import partial
from typing import Any

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import CannotComputeError, HuggingFace
from numatp.files.layouts import Config
from numatp.models.latent import (
    LATENT_CONFIG,
    LATENT_ONLY,
    LATENT_TENSORS,
    LatentSpec,
    latent_forward,
    latent_rules,
    read_latent,
)
from numatp.models.names import EITHER
from numatp.models.routed import SOFTMAX


def _heat(config: Config) -> Any:
    return rope_parameters(config).get("llama_4_scaling_beta")


def _heat_length(config: Config) -> Any:
    return rope_parameters(config).get("original_max_position_embeddings") if _heat(config) else None


def _gate(config: Config) -> int:
    if config.get("scoring_func") not in (None, "softmax"):
        raise CannotComputeError(f"routes by {config['scoring_func']!r} ('scoring_func')")
    return SOFTMAX


def _rotated(config: Config) -> int:
    """A head's size says how much of it rotates, where it is said."""
    nope, rotated = int(config["qk_nope_head_dim"]), int(config["qk_rope_head_dim"])
    if config.get("head_dim") not in (None, nope + rotated):
        raise CannotComputeError(f"has heads of {config['head_dim']} values ('head_dim'), not {nope} + {rotated}")
    return rotated


DEFAULTS = {
    "rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "routed_scaling_factor": 1.0, "rope_interleave": True,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    },
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"Mistral4ForCausalLM": DEFAULTS},
    config=LATENT_CONFIG
    | {
        "rope.dimension_count": _rotated,
        "expert_gating_func": _gate,
        "attention.temperature_scale": _heat,
        "attention.temperature_length": _heat_length,
    },
    tensors=LATENT_TENSORS | EITHER,
    only=LATENT_ONLY,
    texts={"mistral4": ("Mistral4ForCausalLM", {})},
)

read_spec = partial(read_latent, kind=LatentSpec)
rules, forward = latent_rules, latent_forward
