"""Phi-3, 3.5 and 4: as Llama (prenorm.py) with rotation by halves, queries, keys and values in one matrix, and gate above up in
another. Models for long contexts divide the frequencies of the rotation by one of two lists.
"""

from typing import Any

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace, HuggingFaceFile
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, ENDS, ONLY, part_of_heads, rope_type
from numatp.models.prenorm import PrenormSpec, prenorm_forward, prenorm_rules, read_prenorm
from numatp.models.rope import check_factors

FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")  # of texts up to the original context, and of longer ones
LAYER = "model.layers.{layer}"


def _is_long(config: Config) -> bool:
    return bool(rope_parameters(config)["rope_type"] in ("longrope", "su"))


def _factors(key: str) -> Any:
    def compute(file: HuggingFaceFile) -> np.ndarray | None:
        if not _is_long(file.config):
            return None
        found = rope_parameters(file.config).get(key)
        if not isinstance(found, list) or not all(type(number) in (int, float) and number > 0 for number in found):
            file.fail(f"should have a list of numbers above 0 for {key!r} in 'rope_parameters'; download the folder again")
        return np.array(found, np.float32)

    return compute


def _scale(config: Config) -> float | None:
    """Of the turned values."""
    rope = rope_parameters(config)
    if not _is_long(config):
        return None
    factor = rope.get("factor") or config["max_position_embeddings"] / rope["original_max_position_embeddings"]
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    return float(np.sqrt(1 + np.log(factor) / np.log(rope["original_max_position_embeddings"]))) if factor > 1 else 1.0


HUGGING_FACE = HuggingFace(
    classes={"Phi3ForCausalLM": {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}},
    config=CONFIG
    | {
        "attention.sliding_window": lambda config: config.get("sliding_window") or 0,
        "rope.dimension_count": part_of_heads,
        "rope.scaling.type": lambda config: None if _is_long(config) else rope_type(rope_parameters(config)),
        "rope.scaling.original_context_length": lambda config: rope_parameters(config)["original_max_position_embeddings"],
        "rope.scaling.attn_factor": _scale,
        "rope.scaling.factor": lambda config: None,
    },
    tensors=ENDS
    | {
        f"blk.{{layer}}.{ours}.weight": f"{LAYER}.{theirs}.weight"
        for ours, theirs in (
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        )
    },
    computed=dict(zip(FACTORS, (_factors("short_factor"), _factors("long_factor")), strict=True)),
    only=ONLY | {"hidden_act": "silu"},
)


def read_spec(file: ModelFile) -> PrenormSpec:
    found = [name for name in FACTORS if name in file.tensors]
    factors = FACTORS if found else ()
    trained = file.count("phi3.rope.scaling.original_context_length", default=file.count("phi3.context_length"))
    for name in found:
        check_factors(file, name)
    if factors and trained < file.count("phi3.context_length"):
        file.notes.append(
            f"{file.path}: rotates in another way where texts may be longer than {trained} tokens; shorter ones are computed "
            f"exactly with -c {trained}"
        )
    return read_prenorm(file, factors=factors, trained=trained, neighbours=False, gate_above_up=True)


rules, forward = prenorm_rules, prenorm_forward
