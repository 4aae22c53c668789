"""Qwen3.5 with experts (35B-A3B, 122B-A10B, 397B-A17B): as Qwen3.5, with experts and a shared one in every layer."""

from numatp.files.huggingface import HuggingFace
from numatp.models import qwen35
from numatp.models.hybrid import DEFAULTS, HYBRID_ONLY
from numatp.models.names import EITHER, EXPERTS
from numatp.models.qwen35 import forward, read_spec, rules

__all__ = ["HUGGING_FACE", "forward", "read_spec", "rules"]

HUGGING_FACE = HuggingFace(
    classes={"Qwen3_5MoeForCausalLM": DEFAULTS},
    config=qwen35.CONFIG,
    tensors=qwen35.TENSORS | EXPERTS | EITHER,
    only=HYBRID_ONLY,
    further=("mtp.*",),
    texts={"qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", {})},
)
