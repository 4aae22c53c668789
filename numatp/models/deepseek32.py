"""DeepSeek-V3.2: latent attention to the tokens that an indexer chooses (indexed.py), whose values turn half of them apart."""

from functools import partial

from numatp.files.huggingface import HuggingFace
from numatp.models.indexed import (
    INDEXED_CONFIG,
    INDEXED_ONLY,
    INDEXED_TENSORS,
    indexed_forward,
    indexed_rules,
    read_indexed,
)

DEFAULTS = {
    "rms_norm_eps": 1e-6, "first_k_dense_replace": 3, "norm_topk_prob": True, "n_group": 8, "topk_group": 4, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"DeepseekV32ForCausalLM": DEFAULTS},
    config=INDEXED_CONFIG,
    tensors=INDEXED_TENSORS,
    only=INDEXED_ONLY,
    further_layers=True,
    texts={"deepseek_v32": ("DeepseekV32ForCausalLM", {})},
)

read_spec = partial(read_indexed, neighbours=False)
rules, forward = indexed_rules, indexed_forward
