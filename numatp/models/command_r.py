"""Command-R and Command-R+: attention and feed-forward side by side on one norm, as in Command-A (cohere2.py), but all layers see
all tokens and rotates q and k. Command-R+ normalises each query and key head with a weight of its own.
"""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from numatp.files.huggingface import HuggingFace
from numatp.files.model_file import ModelFile
from numatp.models.names import ATTENTION, CONFIG, ENDS, FFN, ONLY
from numatp.models.spec import ATTENTION_OUTPUT_RULE, DOWN_RULE, GATE_UP_RULES, QKV_RULES, Spec, decoder_rules, read_common
from numatp.program.values import Heads, LayerCache
from numatp.weights.load import Weights
from numatp.weights.rules import Rule
from numatp.weights.splits import Split

if TYPE_CHECKING:
    from numatp.program.ops import Ops

HUGGING_FACE = HuggingFace(
    classes={"CohereForCausalLM": {"logit_scale": 0.0625, "layer_norm_eps": 1e-5, "rope_theta": 500000.0}},
    config=CONFIG | {"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"},
    tensors=ENDS
    | ATTENTION
    | FFN
    | {f"blk.{{layer}}.attn_{name}_norm.weight": f"model.layers.{{layer}}.self_attn.{name}_norm.weight" for name in "qk"},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False},
    switched={f"blk.{{layer}}.attn_{name}_norm.weight": "use_qk_norm" for name in "qk"},
    tied=True,
)


@dataclass(frozen=True)
class CommandRSpec(Spec):
    logit_scale: float
    heads_normalized: bool


def read_spec(file: ModelFile) -> CommandRSpec:
    return read_common(
        file, CommandRSpec, norm="layer_norm_epsilon", layer_exchanges=1, logit_scale=file.number("command-r.logit_scale"),
        heads_normalized="blk.0.attn_q_norm.weight" in file.tensors,
    )  # fmt: skip


def rules(spec: CommandRSpec) -> list[Rule]:
    norms = (
        Rule.table("attn_q_norm.weight", "heads", "head_size"),
        Rule.table("attn_k_norm.weight", "kv_heads", "head_size"),
    )
    return decoder_rules(
        spec,
        lambda layer: (
            Rule.vector("attn_norm.weight", "width"),
            *QKV_RULES,
            *GATE_UP_RULES,
            *(norms if spec.heads_normalized else ()),
            ATTENTION_OUTPUT_RULE,
            DOWN_RULE,
        ),
    )


def forward(p: "Ops", spec: CommandRSpec, split: Split, weights: Weights, caches: list[LayerCache]) -> None:
    sizes = spec.sizes
    matrix, vector = weights.matrix, weights.vector
    heads = Heads(split.heads, split.kv_heads, sizes.group, sizes.head_size)
    angles = p.rotation(spec.rope.frequencies, spec.rope.scale)
    x = p.embed(matrix("token_embd.weight"), split.vocab.start)
    for layer, cache in p.layers(caches):
        blk = f"blk.{layer}"
        h = p.layer_norm(x, vector(f"{blk}.attn_norm.weight"), spec.epsilon)
        qkv = p.matmul(h, *(matrix(f"{blk}.attn_{name}.weight") for name in "qkv"))
        gate_up = p.matmul(h, matrix(f"{blk}.ffn_gate.weight"), matrix(f"{blk}.ffn_up.weight"))
        if spec.heads_normalized:
            q_norm, k_norm = vector(f"{blk}.attn_q_norm.weight"), vector(f"{blk}.attn_k_norm.weight")
            qkv = p.layer_norm_heads(qkv, heads, q_norm, k_norm, spec.epsilon)
        qkv = p.rotate_and_append(qkv, heads, angles, cache, neighbours=True)
        ffn = p.silu_gate(gate_up)
        attended = p.attention(qkv, heads, 1 / sqrt(heads.size), cache)
        x = p.add_products(x, (ffn, matrix(f"{blk}.ffn_down.weight")), (attended, matrix(f"{blk}.attn_output.weight")))
    # Scaling the normalised rows scales the logits.
    x = p.layer_norm(x, vector("output_norm.weight"), spec.epsilon, logits_only=True, scale=spec.logit_scale)
    p.logits(x, matrix("token_embd.weight" if spec.tied else "output.weight"), split.vocab.start)
