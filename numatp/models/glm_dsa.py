"""GLM-5 to 5.2: latent attention to the tokens that an indexer chooses (indexed.py), or that of an earlier layer."""

from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.indexed import (
    INDEXED_CONFIG,
    INDEXED_ONLY,
    INDEXED_TENSORS,
    IndexedSpec,
    indexed_forward,
    indexed_rules,
    indexers_listed,
    read_indexed,
)
from numatp.program.values import LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

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


def read_spec(file: ModelFile) -> IndexedSpec:
    return read_indexed(file)


def rules(spec: IndexedSpec) -> list[Rule]:
    return indexed_rules(spec)


def forward(p: "Ops", spec: IndexedSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    indexed_forward(p, spec, split, weights, caches, neighbours=True)
