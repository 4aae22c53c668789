"""Qwen3.5 and Qwen3.6: gated attention in every few layers, a gated delta rule in the others (hybrid.py). In GGUF files the value
heads that share a key head lie apart: one of each key head, then the next of each; folders have them one after another. Positions
of images have three components; those of texts are equal, so they turn as any other.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.folder import rope_parameters
from numatp.files.huggingface import HuggingFace, Stored, numbered_rows
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.hybrid import (
    DEFAULTS,
    HYBRID_CONFIG,
    HYBRID_ONLY,
    HYBRID_TENSORS,
    LINEAR_KEYS,
    HybridSpec,
    hybrid_forward,
    hybrid_rules,
    negative_exp,
    read_hybrid,
)
from numatp.models.names import Keys
from numatp.program.values import LayerCache, LayerState, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

SECTIONS = [11, 11, 10]  # pairs that turn by each component of a position, where config.json does not say


def _tiled(keys: bool, heads: bool) -> Callable[[ModelFile], tuple[np.ndarray, int]]:
    """The folder's numbers of rows (or columns): a value head of each key head, then the next of each. keys: queries and keys lie
    before them; heads: a head has as many rows as values, else one.
    """

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        name = file.text("general.architecture")
        key_heads, size = file.count(f"{name}.ssm.group_count"), file.count(f"{name}.ssm.state_size")
        group = file.count(f"{name}.ssm.time_step_rank") // key_heads
        before = 2 * key_heads * size if keys else 0
        values = numbered_rows(file, key_heads, group, size if heads else 1).swapaxes(0, 1).ravel()
        return np.concatenate([np.arange(before), before + values]), before + values.size

    return read


def _sections(config: Config) -> list[int]:
    return [*rope_parameters(config).get("mrope_section", SECTIONS), 0][:4]


CONFIG: Keys = HYBRID_CONFIG | {"rope.dimension_sections": _sections}
del CONFIG["expert_weights_norm"]  # their shares always add up to 1
TENSORS = HYBRID_TENSORS | {
    f"blk.{{layer}}.{ours}": Stored(f"model.layers.{{layer}}.linear_attn.{theirs}", values, order, columns=columns)
    for ours, theirs, values, order, columns in (
        ("attn_qkv.weight", "in_proj_qkv.weight", None, _tiled(keys=True, heads=True), None),
        ("attn_gate.weight", "in_proj_z.weight", None, _tiled(keys=False, heads=True), None),
        ("ssm_beta.weight", "in_proj_b.weight", None, _tiled(keys=False, heads=False), None),
        ("ssm_alpha.weight", "in_proj_a.weight", None, _tiled(keys=False, heads=False), None),
        ("ssm_conv1d.weight", "conv1d.weight", None, _tiled(keys=True, heads=True), None),
        ("ssm_a", "A_log", negative_exp, _tiled(keys=False, heads=False), None),
        ("ssm_dt.bias", "dt_bias", None, _tiled(keys=False, heads=False), None),
        ("ssm_norm.weight", "norm.weight", None, None, None),
        ("ssm_out.weight", "out_proj.weight", None, None, _tiled(keys=False, heads=True)),
    )
}
HUGGING_FACE = HuggingFace(
    classes={"Qwen3_5ForCausalLM": DEFAULTS},
    config=CONFIG,
    tensors=TENSORS,
    only=HYBRID_ONLY,
    further=("mtp.*",),
    texts={"qwen3_5_text": ("Qwen3_5ForCausalLM", {})},
)

LINEAR_VALUES = "linear_group*linear_key_heads*linear_head_size"
LINEAR_QKV = f"{LINEAR_KEYS} + {LINEAR_KEYS} + {LINEAR_VALUES}"


def read_spec(file: ModelFile) -> HybridSpec:
    return read_hybrid(file, tiled=True)


def rules(spec: HybridSpec) -> list[Rule]:
    return hybrid_rules(
        spec,
        (
            Rule.matrix("attn_qkv.weight", LINEAR_QKV, "width"),
            Rule.matrix("attn_gate.weight", LINEAR_VALUES, "width"),
            # Small, and a rank's rows would be no whole tiles: every rank has them of all heads.
            Rule.matrix("ssm_beta.weight", "linear_values", "width"),
            Rule.matrix("ssm_alpha.weight", "linear_values", "width"),
            Rule.table("ssm_conv1d.weight", LINEAR_QKV, "conv_width", by="columns"),
            Rule.vector("ssm_a", "linear_values"),
            Rule.vector("ssm_dt.bias", "linear_values"),
            Rule.vector("ssm_norm.weight", "linear_head_size"),
            *Rule.repeated("ssm_out.weight", "width", LINEAR_VALUES, spec.sizes.linear_group),
        ),
    )


def forward(p: "Ops", spec: HybridSpec, split: Split, weights: Weights, caches: Sequence[LayerCache | LayerState]) -> None:
    def gates_of(beta: Value, alpha: Value) -> tuple[Value, Value]:
        return beta, alpha

    outputs = [f"ssm_out.weight[{i}]" for i in range(spec.sizes.linear_group)]
    hybrid_forward(p, spec, split, weights, caches, ("ssm_beta.weight", "ssm_alpha.weight"), gates_of, outputs)
