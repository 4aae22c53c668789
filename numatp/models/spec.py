"""What an engine must know of a model besides its weights; every architecture file makes one from a file's metadata."""

from collections.abc import Callable
from dataclasses import dataclass

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
    rope_base: float
    tied: bool  # the embedding is also the output matrix
