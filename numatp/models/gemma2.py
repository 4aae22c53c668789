"""Gemma 2: every second layer sees a window of tokens, scores and logits are bounded by soft caps, and the results of attention and
feed-forward are normalised before they are added. GGUF has 1 added to the norms' weights.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import AROUND_BLOCKS, ATTENTION, CONFIG, ENDS, FFN, ONLY, layer_types, plus_one
from numatp.models.spec import (
    ATTENTION_OUTPUT_RULE,
    DOWN_RULE,
    GATE_UP_RULES,
    QKV_RULES,
    Spec,
    decoder_rules,
    read_cap,
    read_common,
    read_ffn,
    read_score_scale,
    read_sizes,
    read_windows,
)
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

LAYERS_OF_27B = 46  # the one size whose scores are not divided by the square root of the head size; files do not say so
SCORE_CAP, LOGIT_CAP, WINDOW = 50.0, 30.0, 4096  # where a file names none

HUGGING_FACE = HuggingFace(
    classes={
        "Gemma2ForCausalLM": {
            "query_pre_attn_scalar": 256, "sliding_window": WINDOW, "rms_norm_eps": 1e-6, "attn_logit_softcapping": SCORE_CAP,
            "final_logit_softcapping": LOGIT_CAP,
        },
    },
    config=CONFIG
    | {
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": layer_types("sliding_attention"),
        "attention.scale": lambda config: config["query_pre_attn_scalar"] ** -0.5,
        # null is no cap, and no other word for it than silence, which in GGUF means the values above.
        "attn_logit_softcapping": lambda config: config["attn_logit_softcapping"] or 0.0,
        "final_logit_softcapping": lambda config: config["final_logit_softcapping"] or 0.0,
    },
    tensors=ENDS | ATTENTION | FFN | AROUND_BLOCKS | {"output_norm.weight": plus_one("model.norm.weight")},
    only=ONLY | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": False},
    tied=True,
)  # fmt: skip


@dataclass(frozen=True)
class Gemma2Spec(Spec):
    score_scale: float
    score_cap: float  # 0: none
    logit_cap: float


def read_spec(file: ModelFile) -> Gemma2Spec:
    sizes = read_sizes(file, **read_ffn(file))
    layers = read_windows(file, sizes, period=2, window=WINDOW)  # of two layers the last sees all tokens
    return read_common(
        file, Gemma2Spec, sizes=sizes, layers=layers,
        score_scale=read_score_scale(file, sizes, by_width=len(layers) == LAYERS_OF_27B),
        score_cap=read_cap(file, "attn_logit_softcapping", SCORE_CAP),
        logit_cap=read_cap(file, "final_logit_softcapping", LOGIT_CAP),
    )  # fmt: skip


def rules(spec: Spec) -> list[Rule]:
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            ATTENTION_OUTPUT_RULE,
            Rule.vector("post_attention_norm.weight", "width"),
            Rule.vector("ffn_norm.weight", "width"),
            *GATE_UP_RULES,
            DOWN_RULE,
            Rule.vector("post_ffw_norm.weight", "width"),
        ),
    )


def forward(p: "Ops", spec: Gemma2Spec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes, epsilon = spec.sizes, spec.epsilon
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start, scale=sqrt(sizes.width))
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.rms_norm(x, vector(f"{blk}.attn_norm.weight"), epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=False)
        h = p.attention(qkv, heads, spec.score_scale, cache, cap=spec.score_cap)
        out, after = matrix(f"{blk}.attn_output.weight"), vector(f"{blk}.post_attention_norm.weight")
        x = p.add_normalized_product(x, h, out, after, epsilon)
        h = p.rms_norm(x, vector(f"{blk}.ffn_norm.weight"), epsilon)
        h = p.gelu_gate(p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight")))
        x = p.add_normalized_product(x, h, matrix(f"{blk}.ffn_down.weight"), vector(f"{blk}.post_ffw_norm.weight"), epsilon)
    x = p.rms_norm(x, vector("output_norm.weight"), epsilon, logits_only=True)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start, cap=spec.logit_cap)
