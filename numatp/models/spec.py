"""What an engine must know of a model besides its weights, and what the files of all architectures have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, TypeVar

from numatp.files.model_file import ModelFile
from numatp.kernels.layout import MAX_HEAD_SIZE
from numatp.models.layers import Attention, InBlocks, InSlots, Layer, parts_of
from numatp.models.rope import Rope, read_rope
from numatp.weights.rules import Rule
from numatp.weights.splits import COLUMN_UNIT, Cut, Shared, Sizes, cut_columns, cut_heads, cut_rows


@dataclass(frozen=True, kw_only=True)
class Spec:
    sizes: Sizes
    layers: tuple[Layer, ...]  # what each layer keeps between tokens
    context: int  # tokens that the model was trained for
    epsilon: float  # of the norms
    rope: Rope
    tied: bool  # the embedding is also the output matrix
    experts_used: int = 0  # by each token
    layer_exchanges: int = 2  # in which ranks add up what they have, in each layer
    first_exchanges: int = 1  # before the first layer: in which they hand out the embedding

    @property
    def exchanges(self) -> int:
        """Per token."""
        return self.first_exchanges + len(self.layers) * self.layer_exchanges

    @property
    def between(self) -> int:
        """Numbers of a token that go from layer to layer."""
        return self.sizes.width

    @property
    def piece(self) -> int:
        """Tokens that change the state of recurrent layers together (InSlots), the fewest of any layer; 0: there are none."""
        return min((kept.piece for kept in parts_of(self.layers) if isinstance(kept, InSlots)), default=0)

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can go back to an earlier token, or share its beginning with another.

        Only if no layer has forgotten or mixed what came before.
        """
        return all(isinstance(kept, InBlocks) and kept.window is None for kept in parts_of(self.layers))


SpecKind = TypeVar("SpecKind", bound=Spec)


def decoder_sizes(width: int, heads: int, kv_heads: int, head_size: int, vocab: int, **others: int | Cut | Shared) -> Sizes:
    """Sizes of a decoder with grouped-query attention; `others` add to them. group: query heads that share one KV head."""
    group = heads // kv_heads
    return Sizes(
        width=width, heads=cut_heads(heads, head_size), kv_heads=Shared(kv_heads, "heads", group), group=group,
        head_size=head_size, vocab=cut_rows(vocab), **others,
    )  # fmt: skip


def read_sizes(file: ModelFile, **others: int | Cut | Shared) -> Sizes:
    """Sizes that the metadata of every architecture has; `others`, as those of its feed-forward networks, add to them."""
    name = file.text("general.architecture")
    width, heads = file.count(f"{name}.embedding_length"), file.count_of_layers(f"{name}.attention.head_count")
    kv_heads = file.count_of_layers(f"{name}.attention.head_count_kv", default=heads)
    head_size = file.count(f"{name}.attention.key_length", default=max(width // heads, 1))
    value_size = file.count(f"{name}.attention.value_length", default=head_size)
    if value_size != head_size:
        file.fail(f"has keys of {head_size} values and values of {value_size}, which numatp cannot compute; use another model")
    check_heads(file, width, heads, kv_heads, head_size)
    return decoder_sizes(width, heads, kv_heads, head_size, read_vocab(file), **others)


def check_heads(file: ModelFile, width: int, heads: int, kv_heads: int, head_size: int) -> None:
    """UserError unless KV heads serve as many heads each, in sizes that kernels take."""
    if heads % kv_heads:
        file.fail(f"{heads} heads cannot share {kv_heads} KV heads evenly: damaged; download it again")
    if head_size % 16 or head_size > MAX_HEAD_SIZE or width % COLUMN_UNIT:
        file.fail(
            f"head size {head_size} and width {width} must be multiples of 16 up to {MAX_HEAD_SIZE} and of {COLUMN_UNIT}; "
            "this model cannot be computed yet"
        )


def read_vocab(file: ModelFile) -> int:
    """Rows of the embedding; 0 where it is missing, which loading says."""
    return int(file.tensors["token_embd.weight"].shape[0]) if "token_embd.weight" in file.tensors else 0


def read_ffn(file: ModelFile) -> dict[str, Cut]:
    """Size of the feed-forward network that all tokens go through."""
    ffn = file.count_of_layers(f"{file.text('general.architecture')}.feed_forward_length")
    if ffn % COLUMN_UNIT:
        file.fail(f"FFN size {ffn} must be a multiple of {COLUMN_UNIT}; this model cannot be computed yet")
    return {"ffn": cut_columns(ffn)}


def read_experts(file: ModelFile, width: str = "expert_feed_forward_length") -> dict[str, int | Cut]:
    """Sizes of a model with experts; width: the key of what is between an expert's matrices."""
    name = file.text("general.architecture")
    experts, used = file.count(f"{name}.expert_count"), file.count(f"{name}.expert_used_count")
    expert_ffn = file.count_of_layers(f"{name}.{width}")
    if used > experts or expert_ffn % COLUMN_UNIT:
        file.fail(f"claims {used} of {experts} experts of {expert_ffn} for each token; convert the model again")
    return {"experts": experts, "expert_ffn": cut_columns(expert_ffn)}


def read_shared_expert(file: ModelFile) -> dict[str, Cut]:
    """Size of the expert that every token goes through."""
    shared_ffn = file.count(f"{file.text('general.architecture')}.expert_shared_feed_forward_length")
    if shared_ffn % COLUMN_UNIT:
        file.fail(f"claims a shared expert of {shared_ffn}, no multiple of {COLUMN_UNIT}; convert the model again")
    return {"shared_ffn": cut_columns(shared_ffn)}


def read_pattern(file: ModelFile, key: str, period: int) -> list[bool]:
    """A flag per layer: a list of them, or a number of layers after each of which one is False, by default `period` (0: never)."""
    name = file.text("general.architecture")
    layers = file.count(f"{name}.block_count", most=max(len(file.tensors), 1))
    if file.is_list(f"{name}.{key}"):
        flags = file.flags(f"{name}.{key}")
        if len(flags) != layers:
            file.fail(f"has {layers} layers and {len(flags)} values of '{name}.{key}'; convert the model again")
        return list(flags)
    period = file.integer(f"{name}.{key}", default=period)
    return [period <= 0 or (layer + 1) % period != 0 for layer in range(layers)]


def read_windows(file: ModelFile, sizes: Sizes, period: int, window: int | None = None) -> tuple[Attention, ...]:
    """Layers that see a window of tokens, but for one in each `period`, or as the metadata says. window: where it does not say."""
    window = file.count(f"{file.text('general.architecture')}.attention.sliding_window", default=window)
    pattern = read_pattern(file, "attention.sliding_window_pattern", period)
    return tuple(Attention(sizes.head_size, sizes.head_size, window if slides else None) for slides in pattern)


def read_kv_heads(file: ModelFile, slides: Sequence[bool]) -> tuple[int, int]:
    """KV heads of the layers that see a window, and of the others; slides: per layer, whether it sees one."""
    key = f"{file.text('general.architecture')}.attention.head_count_kv"
    if not file.is_list(key):
        return file.count(key), file.count(key)
    numbers = file.integers(key)
    found = [{number for number, flag in zip(numbers, slides, strict=False) if flag == kind} for kind in (True, False)]
    if len(numbers) != len(slides) or any(len(kind) > 1 or min(kind, default=1) < 1 for kind in found):
        file.fail(f"metadata '{key}' is not one number for each kind of layers; convert the model again")
    window, full = (kind.pop() if kind else 1 for kind in found)
    return window, full


def read_cap(file: ModelFile, key: str, default: float = 0.0) -> float:
    """A soft cap (kernels/softcap.py), 0 for none; default: where the metadata does not say."""
    cap = file.number(f"{file.text('general.architecture')}.{key}", default)
    if cap and not 1e-3 <= cap <= 1e3:  # beyond which float32 has too little of what is capped
        file.fail(f"claims {key} of {cap:g}, which should be 0 or from 0.001 to 1000; convert the model again")
    return cap


def read_score_scale(file: ModelFile, sizes: Sizes, by_width: bool) -> float:
    """Of Gemma 2's and 3's scores. by_width: where the file does not say, the root of width / heads divides them, else that of the
    head size.
    """
    size = sizes.width // sizes.heads if by_width else sizes.head_size
    return file.positive(f"{file.text('general.architecture')}.attention.scale", default=1 / sqrt(size))


def read_common(file: ModelFile, kind: type[SpecKind], norm: str = "layer_norm_rms_epsilon", **more: Any) -> SpecKind:
    """What the metadata of every architecture has; `more` replaces some or adds to it. norm: the key of the norms' epsilon."""
    name = file.text("general.architecture")
    sizes = more.pop("sizes", None) or read_sizes(file, **read_ffn(file))
    if "layers" not in more:
        window = file.integer(f"{name}.attention.sliding_window", default=0)
        pattern = read_pattern(file, "attention.sliding_window_pattern", 0)
        more["layers"] = tuple(
            Attention(sizes.head_size, sizes.head_size, window if slides and window > 0 else None) for slides in pattern
        )
    if "rope" not in more:
        more["rope"] = read_rope(file, sizes.head_size)
    return kind(
        sizes=sizes, context=file.count(f"{name}.context_length"), epsilon=file.positive(f"{name}.attention.{norm}"),
        tied="output.weight" not in file.tensors, **more,
    )  # fmt: skip


# What the layers of several architectures have, in the order in which a forward pass reads it.
QKV_RULES = (
    Rule.matrix("attn_q.weight", "heads*head_size", "width"),
    Rule.matrix("attn_k.weight", "kv_heads*head_size", "width"),
    Rule.matrix("attn_v.weight", "kv_heads*head_size", "width"),
)
QKV_BIAS_RULES = (
    Rule.vector("attn_q.bias", "heads*head_size"),
    Rule.vector("attn_k.bias", "kv_heads*head_size"),
    Rule.vector("attn_v.bias", "kv_heads*head_size"),
)
HEAD_NORM_RULES = (Rule.vector("attn_q_norm.weight", "head_size"), Rule.vector("attn_k_norm.weight", "head_size"))
ATTENTION_OUTPUT_RULE = Rule.matrix("attn_output.weight", "width", "heads*head_size")
GATE_UP_RULES = (Rule.matrix("ffn_gate.weight", "ffn", "width"), Rule.matrix("ffn_up.weight", "ffn", "width"))
DOWN_RULE = Rule.matrix("ffn_down.weight", "width", "ffn")
ROUTER_RULE = Rule.router("ffn_gate_inp.weight", "experts", "width")
EXPERT_GATE_UP_RULES = (
    Rule.stacked("ffn_gate_exps.weight", "experts", "expert_ffn", "width"),
    Rule.stacked("ffn_up_exps.weight", "experts", "expert_ffn", "width"),
)
EXPERT_DOWN_RULE = Rule.stacked("ffn_down_exps.weight", "experts", "width", "expert_ffn")
SHARED_EXPERT_RULES = (
    Rule.vector("ffn_gate_inp_shexp.weight", "width"),
    Rule.matrix("ffn_gate_shexp.weight", "shared_ffn", "width"),
    Rule.matrix("ffn_up_shexp.weight", "shared_ffn", "width"),
    Rule.matrix("ffn_down_shexp.weight", "width", "shared_ffn"),
)


def decoder_rules(spec: Spec, layer_rules: Callable[[int], Sequence[Rule]]) -> list[Rule]:
    """The tensors, in the order in which they lie in memory: what one op reads lies side by side.

    layer_rules(layer): without "blk.N." before the names.
    """
    listed = [Rule("token_embd.weight", "head" if spec.tied else "embedding", ("vocab", "width"))]
    for layer in range(len(spec.layers)):
        listed += [replace(rule, name=f"blk.{layer}.{rule.name}", layer=layer) for rule in layer_rules(layer)]
    listed.append(Rule.vector("output_norm.weight", "width"))
    return listed if spec.tied else [*listed, Rule("output.weight", "head", ("vocab", "width"))]
