"""Qwen3.5 with experts (35B-A3B, 122B-A10B, 397B-A17B): as Qwen3.5, with experts and a shared one in every layer."""

from collections.abc import Callable

import numpy as np

from numatp.files.huggingface import HuggingFace, Stored, numbered_rows
from numatp.files.model_file import ModelFile
from numatp.models import qwen35
from numatp.models.hybrid import DEFAULTS, HYBRID_ONLY
from numatp.models.names import EXPERTS
from numatp.models.qwen35 import forward, read_spec, rules

__all__ = ["HUGGING_FACE", "forward", "read_spec", "rules"]


def _half(which: int) -> Callable[[ModelFile], tuple[np.ndarray, int]]:
    """Of every expert the first or the second half of its rows: gate or up."""

    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        rows = numbered_rows(file, file.count("qwen35moe.expert_count"), 2, file.count("qwen35moe.expert_feed_forward_length"))
        return rows[:, which], rows.size

    return read


def _down(file: ModelFile) -> tuple[np.ndarray, int]:
    rows = numbered_rows(file, file.count("qwen35moe.expert_count"), file.count("qwen35moe.embedding_length"))
    return rows, rows.size


# Each expert's matrices as tensors of their own, or those of all experts in one.
TOGETHER = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(
        EXPERTS[f"blk.{{layer}}.ffn_{name}_exps.weight"], together=(f"model.layers.{{layer}}.mlp.experts.{theirs}", rows)
    )
    for name, theirs, rows in (("gate", "gate_up_proj", _half(0)), ("up", "gate_up_proj", _half(1)), ("down", "down_proj", _down))
}

HUGGING_FACE = HuggingFace(
    classes={"Qwen3_5MoeForCausalLM": DEFAULTS},
    config=qwen35.CONFIG,
    tensors=qwen35.TENSORS | EXPERTS | TOGETHER,
    only=HYBRID_ONLY,
    further=("mtp.*",),
    texts={"qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", {})},
)
