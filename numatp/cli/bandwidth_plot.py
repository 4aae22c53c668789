"""Draws what `numatp bandwidth` measured: the matrix of nodes, and how local reading grows with threads."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from numatp.cli.bench_plot import prepare

if TYPE_CHECKING:
    from numatp.measure.bandwidth import Bandwidth


def check(path: str) -> "Callable[[Bandwidth], None]":
    """What draws into `path` later. UserError now, not after minutes of measuring, if that cannot be done."""
    prepare(path)
    return partial(draw, path=path)


def draw(found: "Bandwidth", path: str) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    owners = list(found.cores)
    best = {(p.threads_node, p.memory_node): p.read_gbs for p in sorted(found.pairs, key=lambda pair: pair.read_gbs)}
    left.imshow([[best[own, node] for node in found.nodes] for own in owners], cmap="viridis", vmin=0, aspect="auto")
    for row, own in enumerate(owners):
        for column, node in enumerate(found.nodes):
            left.text(column, row, f"{best[own, node]:.1f}", ha="center", va="center", color="white")
    left.set_xticks(range(len(found.nodes)), [f"memory {node}" for node in found.nodes])
    left.set_yticks(range(len(owners)), [f"threads {node}" for node in owners])
    left.set_title("read, GB/s")
    for own in owners:
        for name, values in (("read", "read_gbs"), ("copy", "copy_gbs"), ("4-bit product", "gemv_gbs")):
            local = [(p.threads, getattr(p, values)) for p in found.pairs if p.threads_node == p.memory_node == own]
            if local:
                right.plot(*zip(*local, strict=True), marker="o", label=f"node {own}: {name}")
    right.set_xlabel("threads of a node, its own memory")
    right.set_ylabel("GB/s")
    right.set_ylim(bottom=0)
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
