"""What an engine must know of a model besides its weights, and what the files of all architectures have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from numatp.files.model_file import ModelFile
from numatp.models.rope import Rope, read_rope
from numatp.weights.loader import Rule
from numatp.weights.splits import Sizes, Split


@dataclass(frozen=True)
class Attention:
    """A layer that keeps keys and values: of all tokens, or of the last `window`."""

    window: int | None = None


@dataclass(frozen=True)
class Recurrent:
    """A layer that keeps a state of fixed size per sequence; state_bytes(split): its bytes on one rank."""

    state_bytes: Callable[[Split], int]


@dataclass(frozen=True)
class Spec:
    sizes: Sizes
    layers: tuple[Attention | Recurrent, ...]  # what each layer keeps between tokens
    context: int  # tokens that the model was trained for
    epsilon: float  # of the norms
    rope: Rope
    tied: bool  # the embedding is also the output matrix


SpecKind = TypeVar("SpecKind", bound=Spec)


def read_sizes(file: ModelFile, **others: int) -> Sizes:
    """Sizes that the metadata of every architecture has; `others` replace some or add to them."""
    name = file.text("general.architecture")
    width, heads = file.count(f"{name}.embedding_length"), file.count_of_layers(f"{name}.attention.head_count")
    kv_heads = file.count_of_layers(f"{name}.attention.head_count_kv", default=heads)
    head_size = file.count(f"{name}.attention.key_length", default=max(width // heads, 1))
    value_size = file.count(f"{name}.attention.value_length", default=head_size)
    if heads % kv_heads:
        file.fail(f"{heads} heads cannot share {kv_heads} KV heads evenly: damaged; download it again")
    if value_size != head_size:
        file.fail(f"has keys of {head_size} values and values of {value_size}, which numatp cannot compute; use another model")
    ffn = others.pop("ffn") if "ffn" in others else file.count_of_layers(f"{name}.feed_forward_length")
    vocab = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    return Sizes(width, heads, kv_heads, head_size, ffn, vocab, **others)


def read_experts(file: ModelFile) -> dict[str, int]:
    """Sizes of a model all of whose layers have experts, and none a feed-forward network for all tokens."""
    name = file.text("general.architecture")
    experts, used = file.count(f"{name}.expert_count"), file.count(f"{name}.expert_used_count")
    expert_ffn = file.count(f"{name}.expert_feed_forward_length")
    if used > experts or expert_ffn % 32:
        file.fail(f"claims {used} of {experts} experts of {expert_ffn} for each token; convert the model again")
    return {"ffn": 0, "experts": experts, "expert_ffn": expert_ffn}


def read_shared_expert(file: ModelFile) -> dict[str, int]:
    """Size of the expert that every token goes through."""
    shared_ffn = file.count(f"{file.text('general.architecture')}.expert_shared_feed_forward_length")
    if shared_ffn % 32:
        file.fail(f"claims a shared expert of {shared_ffn}, no multiple of 32; convert the model again")
    return {"shared_ffn": shared_ffn}


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


def read_windows(file: ModelFile, period: int) -> tuple[Attention, ...]:
    """Layers that see a window of tokens, but for one in each `period`, or as the metadata says."""
    window = file.count(f"{file.text('general.architecture')}.attention.sliding_window")
    return tuple(Attention(window if slides else None) for slides in read_pattern(file, "attention.sliding_window_pattern", period))


def read_common(file: ModelFile, kind: type[SpecKind], norm: str = "layer_norm_rms_epsilon", **more: Any) -> SpecKind:
    """What the metadata of every architecture has; `more` replaces some or adds to it. norm: the key of the norms' epsilon."""
    name = file.text("general.architecture")
    sizes = more.pop("sizes", None) or read_sizes(file)
    if "layers" not in more:
        window = file.integer(f"{name}.attention.sliding_window", default=0)
        more["layers"] = (Attention(window if window > 0 else None),) * len(read_pattern(file, "block_count", 0))
    if "rope" not in more:
        more["rope"] = read_rope(file, sizes.head_size)
    return kind(
        sizes=sizes, context=file.count(f"{name}.context_length"), epsilon=file.positive(f"{name}.attention.{norm}"),
        tied="output.weight" not in file.tensors, **more,
    )  # fmt: skip


def decoder_rules(spec: Spec, layer_tensors: Callable[[int], Sequence[tuple[str, tuple[str, ...]] | Rule]]) -> list[Rule]:
    """The tensors, in the order in which they lie in memory: what one op reads lies side by side.

    layer_tensors(layer): (name, shape) or a Rule, without "blk.N." before the name.
    """
    listed = [Rule("token_embd.weight", ("vocab", "width"))]
    for layer in range(len(spec.layers)):
        for tensor in layer_tensors(layer):
            rule = tensor if isinstance(tensor, Rule) else Rule(*tensor)
            listed.append(replace(rule, name=f"blk.{layer}.{rule.name}"))
    listed.append(Rule("output_norm.weight", ("width",)))
    return listed if spec.tied else [*listed, Rule("output.weight", ("vocab", "width"))]
