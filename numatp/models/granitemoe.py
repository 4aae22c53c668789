"""Granite 3 and 4 with experts: as Granite (granite.py), with experts in all layers, and maybe one that all rows go through."""

import numpy as np

from numatp.files.huggingface import HuggingFace, Order, Stored, numbered_rows
from numatp.files.model_file import ModelFile
from numatp.models.granite import GRANITE, GRANITE_CONFIG, read_granite
from numatp.models.names import ONLY, TOGETHER
from numatp.models.prenorm import PRENORM_TENSORS, PrenormSpec, prenorm_forward, prenorm_rules
from numatp.models.spec import read_experts, read_shared_expert, read_sizes

LINEAR = {"gate_up_proj": "input_linear", "down_proj": "output_linear"}
LAYER = "model.layers.{layer}"


def _half_of_shared(which: int) -> Order:
    def read(file: ModelFile) -> tuple[np.ndarray, int]:
        rows = numbered_rows(file, 2, file.count("granitemoe.expert_shared_feed_forward_length"))
        return rows[which], rows.size

    return read


HUGGING_FACE = HuggingFace(
    classes={"GraniteMoeForCausalLM": GRANITE, "GraniteMoeSharedForCausalLM": GRANITE},
    config=GRANITE_CONFIG
    | {
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "expert_shared_feed_forward_length": lambda config: config.get("shared_intermediate_size") or None,
    },
    tensors=PRENORM_TENSORS
    | {"blk.{layer}.ffn_gate_inp.weight": f"{LAYER}.block_sparse_moe.router.layer.weight"}
    | {
        f"blk.{{layer}}.ffn_{name}_exps.weight": Stored(f"{LAYER}.block_sparse_moe.{LINEAR[theirs]}.weight", order=rows)
        for name, (theirs, rows) in TOGETHER.items()
    }
    | {
        "blk.{layer}.ffn_gate_shexp.weight": Stored(f"{LAYER}.shared_mlp.input_linear.weight", order=_half_of_shared(0)),
        "blk.{layer}.ffn_up_shexp.weight": Stored(f"{LAYER}.shared_mlp.input_linear.weight", order=_half_of_shared(1)),
        "blk.{layer}.ffn_down_shexp.weight": f"{LAYER}.shared_mlp.output_linear.weight",
    },
    only=ONLY | {"hidden_act": "silu", "attention_bias": False},
)


def read_spec(file: ModelFile) -> PrenormSpec:
    shared = file.integer("granitemoe.expert_shared_feed_forward_length", default=0) > 0
    sizes = read_sizes(file, **read_experts(file, "feed_forward_length"), **(read_shared_expert(file) if shared else {}))
    return read_granite(file, sizes=sizes, mixture=True, experts_used=file.count("granitemoe.expert_used_count"))


rules, forward = prenorm_rules, prenorm_forward
