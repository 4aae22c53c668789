"""Qwen3-Next: gated attention in every few layers, a gated delta rule in the others (hybrid.py). A key head's value heads follow
each other, and beside a key head's betas lie its alphas.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from numatp.files.huggingface import HuggingFace, Stored, numbered_rows
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
from numatp.models.names import EXPERTS
from numatp.program.values import LayerCache, LayerState, Value
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops


def _grouped_rows(file: ModelFile, first: int, last: int) -> tuple[np.ndarray, int]:
    """Rows of in_proj_qkvz, where each key head has its query, its key, its value heads' values and their gates: those of the
    first-th to the last-th of these four, one after another, each of all heads."""
    key_heads, size = file.count("qwen3next.ssm.group_count"), file.count("qwen3next.ssm.state_size")
    values = file.count("qwen3next.ssm.time_step_rank") // key_heads * size
    rows = numbered_rows(file, key_heads, 2 * (size + values))
    parts = np.split(rows, [size, 2 * size, 2 * size + values], axis=1)
    return np.concatenate([part.ravel() for part in parts[first : last + 1]]), rows.size


HUGGING_FACE = HuggingFace(
    classes={"Qwen3NextForCausalLM": DEFAULTS | {"norm_topk_prob": True}},
    config=HYBRID_CONFIG,
    tensors=HYBRID_TENSORS
    | EXPERTS
    | {
        f"blk.{{layer}}.{ours}": Stored(f"model.layers.{{layer}}.linear_attn.{theirs}", values, order)
        for ours, theirs, values, order in (
            ("attn_qkv.weight", "in_proj_qkvz.weight", None, partial(_grouped_rows, first=0, last=2)),
            ("attn_gate.weight", "in_proj_qkvz.weight", None, partial(_grouped_rows, first=3, last=3)),
            ("ssm_ba.weight", "in_proj_ba.weight", None, None),
            ("ssm_conv1d.weight", "conv1d.weight", None, None),
            ("ssm_a", "A_log", negative_exp, None),
            ("ssm_dt.bias", "dt_bias", None, None),
            ("ssm_norm.weight", "norm.weight", None, None),
            ("ssm_out.weight", "out_proj.weight", None, None),
        )
    },
    only=HYBRID_ONLY,
    further=("mtp.*",),
)

LINEAR_VALUES = "linear_key_heads*linear_group*linear_head_size"
LINEAR_QKV = f"{LINEAR_KEYS} + {LINEAR_KEYS} + {LINEAR_VALUES}"
LINEAR = (
    Rule.matrix("attn_qkv.weight", LINEAR_QKV, "width"),
    Rule.matrix("attn_gate.weight", LINEAR_VALUES, "width"),
    Rule.matrix("ssm_ba.weight", "linear_key_heads*2*linear_group", "width"),
    Rule.table("ssm_conv1d.weight", LINEAR_QKV, "conv_width", by="columns"),
    Rule.vector("ssm_a", "linear_key_heads*linear_group"),
    Rule.vector("ssm_dt.bias", "linear_key_heads*linear_group"),
    Rule.vector("ssm_norm.weight", "linear_head_size"),
    Rule.matrix("ssm_out.weight", "width", LINEAR_VALUES),
)


def read_spec(file: ModelFile) -> HybridSpec:
    return read_hybrid(file, tiled=False)


def rules(spec: HybridSpec) -> list[Rule]:
    return hybrid_rules(spec, LINEAR)


def forward(p: "Ops", spec: HybridSpec, split: Split, weights: Weights, caches: Sequence[LayerCache | LayerState]) -> None:
    group = spec.sizes.linear_group

    def gates_of(both: Value) -> tuple[Value, Value]:  # of each key head its betas, then its alphas
        return both, both.columns(group, both.width - group) if both.width else both

    hybrid_forward(p, spec, split, weights, caches, ("ssm_ba.weight",), gates_of, ("ssm_out.weight",))
