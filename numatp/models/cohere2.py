"""Command-A and Command-R7B: attention and feed-forward side by side on one norm, so that a layer needs one exchange. Most layers
see a window of tokens and rotate q and k; every few layers one sees all tokens and knows no positions.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY, layer_types
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_common,
    read_ffn,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = HuggingFace(
    classes={"Cohere2ForCausalLM": {"logit_scale": 0.0625, "layer_norm_eps": 1e-5, "sliding_window": 4096}},
    config=CONFIG
    | {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": layer_types("sliding_attention", "sliding_window_pattern"),
        "logit_scale": "logit_scale",
    },
    tensors=ENDS | ATTENTION | FFN,
    only=ONLY
    | {"hidden_act": "silu", "attention_bias": False, "use_qk_norm": False},
    tied=True,
    texts={
        "cohere2": ("Cohere2ForCausalLM", {
            "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40, "num_attention_heads": 64,
            "max_position_embeddings": 8192,
        }),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Cohere2Spec(Spec):
    logit_scale: float


def read_spec(file: ModelFile) -> Cohere2Spec:
    sizes = read_sizes(file, **read_ffn(file))
    return read_common(
        file, Cohere2Spec, norm="layer_norm_epsilon", sizes=sizes,
        layers=read_windows(file, sizes, period=4),  # of four layers the last sees all tokens
        layer_exchanges=1, logit_scale=file.number("cohere2.logit_scale"),
    )  # fmt: skip


def rules(spec: Cohere2Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *GATE_UP_RULES,
            ATTENTION_OUTPUT_RULE,
            DOWN_RULE,
        ),
    )


def forward(p: "Ops", spec: Cohere2Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        positions = None if cache.sees_all else angles
        h = p.layer_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        gate_up = p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight"))
        qkv = p.rotate_and_append(qkv, heads, positions, cache, neighbours=True)
        ffn = p.silu_gate(gate_up)
        attended = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        x = p.add_products(x, (ffn, matrix(f"{blk}.ffn_down.weight")), (attended, matrix(f"{blk}.attn_output.weight")))
    # Scaling the normalised rows scales the logits.
    x = p.layer_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True, scale=spec.logit_scale)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
