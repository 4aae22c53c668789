"""Granite 3 and 4 (dense): as Llama (prenorm.py), with factors for embeddings, scores, what layers add, and logits."""

from math import sqrt
from typing import Any

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, FFN, ONLY, Keys
from numatp.models.prenorm import PRENORM_TENSORS, PrenormSpec, prenorm_forward, prenorm_rules, read_prenorm
from numatp.models.spec import read_sizes

GRANITE: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}  # fmt: skip
GRANITE_CONFIG: Keys = CONFIG | {
    "attention.key_length": lambda config: None,
    "attention.value_length": lambda config: None,
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
HUGGING_FACE = HuggingFace(
    classes={"GraniteForCausalLM": GRANITE},
    config=GRANITE_CONFIG,
    tensors={**PRENORM_TENSORS, **FFN},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
)


def read_granite(file: ModelFile, **more: Any) -> PrenormSpec:
    """`more`: see read_common."""
    name, sizes = file.text("general.architecture"), more.get("sizes") or read_sizes(file)
    return read_prenorm(
        file, score_scale=file.positive(f"{name}.attention.scale", default=1 / sqrt(sizes.head_size)),
        embedding_scale=file.number(f"{name}.embedding_scale", default=1.0),
        residual_scale=file.number(f"{name}.residual_scale", default=1.0),
        logit_scale=1 / file.positive(f"{name}.logit_scale"), **more,
    )  # fmt: skip


read_spec = read_granite
rules, forward = prenorm_rules, prenorm_forward
