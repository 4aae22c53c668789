"""Which layers are this host's, where hosts hold layers instead of slices? Pure arithmetic on sizes, as splits.py is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

from numatp.errors import UserError
from numatp.weights.rules import Rule


@dataclass(frozen=True)
class Stage:
    """A host's run of the model's layers: what they make goes on to the next host, and of the last one come the logits."""

    layers: range
    last: bool

    @property
    def first(self) -> bool:
        """Whether it looks the tokens up."""
        return self.layers.start == 0

    def holds(self, rule: Rule, tied: bool) -> bool:
        """Whether a tensor is needed here. tied: the embedding is also the output matrix."""
        if rule.layer is not None:
            return rule.layer in self.layers
        if rule.kind == "head":
            return self.last or (tied and self.first)
        return self.first if rule.kind == "embedding" else True  # the others are few numbers, which all layers may read


def deal(sizes: Sequence[int], shares: Sequence[float], needs: Sequence[int | None]) -> list[range]:
    """A run of layers for each host, in order: of all such cuts one in which the most that a host has, for its share, is least.

    sizes: of each layer. shares: of each host. needs: by layer, an earlier one that must be on the same host. UserError for more
    hosts than runs.
    """
    count = len(sizes)
    starts = [start for start in range(count) if all(need is None or need >= start for need in needs[start:])]
    if len(starts) < len(shares):
        why = ", as layers take more from earlier ones than one row of a token" if len(starts) < count else ""
        raise UserError(
            f"--pipeline: this model's {count} layers can be dealt to {len(starts)} at most of these {len(shares)} hosts{why}: "
            "leave it out"
        )
    before = list(accumulate(sizes, initial=0))
    least = {0: 0.0}  # by the layers that the hosts so far hold together: the most that one of them has, for its share
    begins: list[dict[int, int]] = []  # by the same, for each host: its first layer
    for share in shares:
        following: dict[int, float] = {}
        begin: dict[int, int] = {}
        for stop in (*starts[1:], count):
            for start, largest in least.items():
                most = max(largest, (before[stop] - before[start]) / share)
                if start < stop and most < following.get(stop, inf):
                    following[stop], begin[stop] = most, start
        least = following
        begins.append(begin)
    bounds = [count]
    for begin in reversed(begins):
        bounds.append(begin[bounds[-1]])
    return [range(start, stop) for start, stop in pairwise(reversed(bounds))]
