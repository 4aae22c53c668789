"""What an engine must know of a model besides its weights; every architecture file makes one from a file's metadata."""

from dataclasses import dataclass

from numatp.weights.splits import Sizes


@dataclass(frozen=True)
class Spec:
    sizes: Sizes
    layers: int
    context: int  # tokens that the model was trained for
    epsilon: float  # of the norms
    rope_base: float
    tied: bool  # the embedding is also the output matrix
