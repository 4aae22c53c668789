"""DeepSeek-V2 and V3, R1, Kimi K2, GLM-4.7-Flash: latent attention (latent.py), and experts routed in groups."""

from collections.abc import Callable
from functools import partial

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
from numatp.models.routed import SIGMOID, SOFTMAX, dense_layers_listed, gate_of

V2, V3, LITE = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"


def _is(config: Config, name: str) -> bool:
    return bool(config["architectures"][0] == name)


def _gate(config: Config) -> int:
    """DeepSeek-V2's is a softmax."""
    if not _is(config, V2):
        return gate_of(config) or SIGMOID
    if config.get("scoring_func") not in (None, "softmax"):
        raise CannotComputeError(f"routes by {config['scoring_func']!r} ('scoring_func')")
    return SOFTMAX


def _normalized(config: Config) -> bool:
    if _is(config, V2) and config["norm_topk_prob"]:  # which its own code does instead of scaling, and transformers never
        raise CannotComputeError("divides the shares of experts by their sum ('norm_topk_prob')")
    return bool(config["norm_topk_prob"])


def _in_groups(key: str) -> Callable[[Config], int | None]:
    """DeepSeek-V2 chooses from all experts where it does not say otherwise, the others from groups."""

    def read(config: Config) -> int | None:
        method = config.get("topk_method")
        if not _is(config, V2) or method == "group_limited_greedy":
            return config.get(key)
        if method != "greedy":
            raise CannotComputeError(f"chooses experts by {method!r} ('topk_method')")
        return 1

    return read


def _dense_layers(config: Config) -> int | None:
    return dense_layers_listed(config) if _is(config, LITE) else config.get("first_k_dense_replace")


DEFAULTS = {
    "rms_norm_eps": 1e-6, "first_k_dense_replace": 3, "norm_topk_prob": True, "n_group": 8, "topk_group": 4, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "rope_interleave": True,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={
        V3: DEFAULTS,
        V2: {
            "rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "norm_topk_prob": False, "n_shared_experts": 2,
            "routed_scaling_factor": 1.0, "topk_method": "greedy",
        },
        LITE: {
            "rms_norm_eps": 1e-5, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
            "routed_scaling_factor": 1.8, "rope_interleave": True,
        },
    },
    config=LATENT_CONFIG
    | {
        "expert_gating_func": _gate,
        "expert_weights_norm": _normalized,
        "expert_group_count": _in_groups("n_group"),
        "expert_group_used_count": _in_groups("topk_group"),
        "leading_dense_block_count": _dense_layers,
    },
    tensors=LATENT_TENSORS,
    only=LATENT_ONLY | {"mlp_bias": False},
    further_layers=True,
    texts={"deepseek_v3": (V3, {}), "kimi_k2": (V3, {})},
)  # fmt: skip

read_spec = partial(read_latent, kind=LatentSpec)
rules, forward = latent_rules, latent_forward
