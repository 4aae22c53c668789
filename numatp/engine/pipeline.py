"""Hosts that hold layers instead of slices (--pipeline): how large layers are, and which are this host's."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from numatp.engine.cache import Pool
from numatp.engine.job import Job, cache_type_of, context_of, quantize_of, slots_of
from numatp.errors import UserError
from numatp.models.layers import InSlots, numbered_parts
from numatp.models.spec import Spec
from numatp.weights.rules import Slice, cut
from numatp.weights.splits import split
from numatp.weights.stages import Stage, deal

if TYPE_CHECKING:
    from numatp.engine.layout import Model


def stage_of(
    model: "Model", job: Job, pools: Sequence[Pool], rank: int, seats: Sequence[int], shares: Sequence[float] | None
) -> tuple[range, Stage]:
    """(the ranks of a rank's host, what they hold together). seats: ranks of each host. shares: of all ranks, None is even."""
    if len(seats) < 2:
        raise UserError("--pipeline deals layers to hosts, and all ranks are on one: leave it out")
    ranks = [range(first, behind) for first, behind in pairwise(accumulate(seats, initial=0))]
    of_hosts = [sum(shares[i] for i in mine) if shares else float(len(mine)) for mine in ranks]
    sizes, whole = model.spec.sizes, split(model.spec.sizes, 0, 1)
    slices, _ = cut(model.file, model.rules, sizes, whole, quantize_of(job, model.file))
    runs = deal(layer_bytes(model.spec, job, pools, slices), of_hosts, [layer.needs for layer in model.spec.layers])
    host = next(host for host, mine in enumerate(ranks) if rank in mine)
    return ranks[host], Stage(runs[host], host == len(seats) - 1)


def layer_bytes(spec: Spec, job: Job, pools: Sequence[Pool], slices: Sequence[Slice]) -> list[int]:
    """What each layer takes in memory, weights and cache; the first has the embedding too, the last the output matrix. slices: of
    the whole model.
    """
    whole = split(spec.sizes, 0, 1)
    slots, kept = slots_of(job, context_of(job, spec.context)), cache_type_of(job, spec.layers)
    sizes, parts = [0] * len(spec.layers), numbered_parts(spec.layers)
    for number, part in parts:
        sizes[number] += slots * part.slot_bytes(whole) if isinstance(part, InSlots) else 0
    for pool in pools:
        for i, part in pool.layers.items():
            sizes[parts[i][0]] += pool.blocks * part.block_bytes(whole, kept)
    for piece in slices:
        rule = piece.rule
        if rule.layer is not None:
            sizes[rule.layer] += piece.num_bytes
        elif rule.kind == "embedding" or (rule.kind == "head" and spec.tied):
            sizes[0] += piece.num_bytes
        if rule.kind == "head":
            sizes[-1] += piece.num_bytes
    return sizes
