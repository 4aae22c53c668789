"""Qwen3.5 with experts (35B-A3B, 122B-A10B, 397B-A17B): as Qwen3.5, with experts and a shared one in every layer."""

from numatp.files.huggingface import HuggingFace, Stored
from numatp.models import qwen35
from numatp.models.hybrid import DEFAULTS, HYBRID_ONLY
from numatp.models.names import EXPERTS, TOGETHER
from numatp.models.qwen35 import forward, read_spec, rules

__all__ = ["HUGGING_FACE", "forward", "read_spec", "rules"]

# Each expert's matrices as tensors of their own, or those of all experts in one.
EITHER = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(
        EXPERTS[f"blk.{{layer}}.ffn_{name}_exps.weight"], together=(f"model.layers.{{layer}}.mlp.experts.{theirs}", rows)
    )
    for name, (theirs, rows) in TOGETHER.items()
}

HUGGING_FACE = HuggingFace(
    classes={"Qwen3_5MoeForCausalLM": DEFAULTS},
    config=qwen35.CONFIG,
    tensors=qwen35.TENSORS | EXPERTS | EITHER,
    only=HYBRID_ONLY,
    further=("mtp.*",),
    texts={"qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", {})},
)
