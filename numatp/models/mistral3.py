"""Ministral 3 (and Mistral Small 3.1 in GGUF files): as Llama (prenorm.py); queries grow with the logarithm of their position."""

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, FFN, ONLY
from numatp.models.prenorm import PRENORM_TENSORS, PrenormSpec, Temper, prenorm_forward, prenorm_rules, read_prenorm
from numatp.models.rope import read_rope
from numatp.models.spec import read_sizes

# Where config.json says nothing of the rotation.
ROPE = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def _log_multiplier(config: Config) -> float | None:
    """What the scale of the turned values is divided by goes by; it counts beside `mscale` alone."""
    rope = rope_parameters(config)
    counts = rope["rope_type"] == "yarn" and rope.get("mscale") and rope.get("attention_factor") is None
    return rope.get("mscale_all_dim") if counts else None


HUGGING_FACE = HuggingFace(
    classes={"Ministral3ForCausalLM": {"rms_norm_eps": 1e-5, "rope_parameters": ROPE, "head_dim": 128}},
    config=CONFIG
    | {
        "attention.sliding_window": "sliding_window",
        "attention.temperature_scale": lambda config: rope_parameters(config)["llama_4_scaling_beta"],
        "rope.scaling.original_context_length": lambda config: rope_parameters(config)["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": _log_multiplier,
    },
    tensors={**PRENORM_TENSORS, **FFN},
    only=ONLY | {"hidden_act": "silu"},
    texts={
        "ministral3": ("Ministral3ForCausalLM", {
            "hidden_size": 4096, "num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "max_position_embeddings": 262144,
        }),
    },
)  # fmt: skip


def read_spec(file: ModelFile) -> PrenormSpec:
    by = file.number("mistral3.attention.temperature_scale", default=0.0)
    every = file.count("mistral3.rope.scaling.original_context_length") if by else 0
    rope = read_rope(file, read_sizes(file).head_size, multiplies="turned")
    return read_prenorm(file, rope=rope, temper=Temper(by, every) if by else None)


rules, forward = prenorm_rules, prenorm_forward
