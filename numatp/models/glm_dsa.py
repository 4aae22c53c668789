"""GLM-5 to 5.3: latent attention to the tokens that an indexer chooses (indexed.py), or that of an earlier layer."""

from functools import partial

from numatp.files.huggingface import HuggingFace
from numatp.models.indexed import (
    INDEXED_CONFIG,
    INDEXED_ONLY,
    INDEXED_TENSORS,
    indexed_forward,
    indexed_rules,
    indexers_listed,
    read_indexed,
)

DEFAULTS = {
    "rms_norm_eps": 1e-5, "first_k_dense_replace": 3, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "routed_scaling_factor": 2.5, "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32,
}  # fmt: skip
HUGGING_FACE = HuggingFace(
    classes={"GlmMoeDsaForCausalLM": DEFAULTS},
    config=INDEXED_CONFIG | {"attention.indexer.types": indexers_listed},
    tensors=INDEXED_TENSORS,
    only=INDEXED_ONLY,
    further_layers=True,
    texts={"glm_moe_dsa": ("GlmMoeDsaForCausalLM", {})},
)

read_spec = partial(read_indexed, neighbours=True)
rules, forward = indexed_rules, indexed_forward
