"""What a model would be on a machine, for people: whose slice lies where, does it fit, how fast can it decode."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from numatp.advice import hosts as several
from numatp.engine.draft import (
    Draft,
    Hosts,
    NodeRoom,
    Prediction,
    RankPlan,
    bytes_by_kind,
    counts_of,
    fastest,
    fits,
    shares_wanted,
)
from numatp.engine.job import Job, context_of
from numatp.engine.layout import Model, lay_out
from numatp.errors import UserError
from numatp.machine import snapshot
from numatp.machine.snapshot import Snapshot
from numatp.machine.topology import format_cpulist

SHOWN = 0.02  # of what is stored more than once: smaller kinds are not listed


@dataclass(frozen=True)
class ModelPlan:
    model: str
    file_bytes: int
    context: int  # tokens
    layers: int
    exchanges: int  # per token, with more than one rank
    ranks: tuple[RankPlan, ...]
    stored_twice: Mapping[str, int]  # bytes beyond one copy by kind of tensor: copies, and what cut tiles add
    kv_heads_twice: tuple[int, ...]  # KV heads that more than one rank holds
    rooms: tuple[NodeRoom, ...]
    limit: int | None  # bytes that the job's memory limit leaves beside the ranks' processes
    predictions: tuple[Prediction, ...]  # for one node, one rank per package, all nodes, and the count that was asked for
    snapshot: Snapshot
    hosts: several.HostsPlan | None = None  # for more than one

    @property
    def imbalance(self) -> float:
        """By how much of the mean the busiest rank reads more than the mean."""
        reads = [rank.read_bytes + rank.cache_read_bytes for rank in self.ranks]
        return max(reads) * len(reads) / max(sum(reads), 1) - 1

    @property
    def fits(self) -> bool:
        return fits(self.rooms, self.limit)


def make_plan(model: Model, machine: Snapshot, job: Job, ranks: int | None = None, hosts: Hosts | None = None) -> ModelPlan:
    """ranks: of all hosts, None for the fastest that fits. hosts: None for the machine alone, else it is each of them.

    UserError for a model that cannot be cut or a context that it was not trained for.
    """
    num_hosts = hosts.count if hosts else 1
    counts = counts_of(machine, job)  # of a host
    wanted = shares_wanted(job)
    if wanted and ranks and ranks != wanted:
        raise UserError(f"--ranks {ranks}: -ts has shares for {wanted} ranks; leave one of them out")
    ranks = ranks or wanted
    if ranks and ranks % num_hosts:
        raise UserError(f"{ranks} ranks: {num_hosts} hosts that are alike have as many each; ask for a multiple of {num_hosts}")
    seats = ranks // num_hosts if ranks else None
    drafts, chosen = _fastest(model, machine, job, [*counts, *filter(None, [seats])], seats, hosts)
    whole = lay_out(model, replace(job, tensor_split=None), 0, [0], {}).slices
    one = bytes_by_kind(whole)
    held = [kv_head for rank in chosen.ranks for kv_head in rank.kv_heads]
    over = None
    if hosts:
        _, alone = _fastest(model, machine, replace(job, tensor_split=None), counts, None, None)
        over = several.compare(model, hosts, alone, chosen, job, whole)
    return ModelPlan(
        model=str(model.file.path), file_bytes=model.file.size, context=context_of(job, model.spec.context),
        layers=len(model.spec.layers), exchanges=model.spec.exchanges, ranks=tuple(chosen.ranks),
        stored_twice={kind: size - one[kind] for kind, size in sorted(chosen.kinds.items()) if size > one[kind]},
        kv_heads_twice=tuple(sorted({head for head in held if held.count(head) > 1})), rooms=tuple(chosen.rooms),
        limit=chosen.limit, predictions=tuple(draft.prediction for draft in drafts), snapshot=machine, hosts=over,
    )  # fmt: skip


def _fastest(
    model: Model, machine: Snapshot, job: Job, counts: list[int], seats: int | None, hosts: Hosts | None
) -> tuple[list[Draft], Draft]:
    """(drafts of all counts of ranks of a host, that of `seats` or else the fastest that fits), of which that one is rehearsed."""
    drafts = {count: Draft(model, machine, job, count, hosts=hosts) for count in sorted(set(counts))}
    count = seats or fastest(drafts, counts)
    while not drafts[count].rehearsed:  # what a Step computes with may be what does not fit
        drafts[count] = Draft(model, machine, job, count, hosts, rehearse=drafts[count])
        count = seats or fastest(drafts, counts)
    if job.threads is None and (threads := drafts[count].threads):  # as a start will have it
        drafts[count] = Draft(model, machine, replace(job, threads=threads), count, hosts, rehearse=drafts[count])
    return list(drafts.values()), drafts[count]


def to_json(plan: ModelPlan) -> dict[str, Any]:
    """Bytes, tokens per second, and ranges as [first, behind the last]."""
    described = {name: value for name, value in vars(plan).items() if name not in ("snapshot", "hosts")}
    if plan.hosts:
        described["hosts"] = asdict(plan.hosts)
    ranks = [
        asdict(rank) | {"heads": [rank.heads.start, rank.heads.stop], "kv_heads": [rank.kv_heads.start, rank.kv_heads.stop]}
        for rank in plan.ranks
    ]
    return described | {
        "ranks": ranks, "rooms": [asdict(room) for room in plan.rooms], "predictions": [asdict(p) for p in plan.predictions],
        "stored_twice": dict(plan.stored_twice), "imbalance": plan.imbalance, "fits": plan.fits,
        "machine": plan.snapshot.name, "bandwidth_source": plan.snapshot.bandwidth_source,
    }  # fmt: skip


def describe(plan: ModelPlan) -> list[str]:
    """Lines for people."""
    lines = [
        f"{plan.model}: {_gb(plan.file_bytes)}, {plan.layers} layers; a cache of {plan.context} tokens",
        *snapshot.describe(plan.snapshot),
    ]
    over = plan.hosts is not None
    rows = [
        ("rank", *["host"] * over, "node", "cpus", "heads", "KV heads", "weights", "cache", "reads per token: weights + full cache")
    ]
    for rank in plan.ranks:
        read = f"{_gb(rank.read_bytes)} + {_gb(rank.cache_read_bytes)}"
        row = [str(rank.rank), *[str(rank.host)] * over, str(rank.node), format_cpulist(rank.cpus), _range(rank.heads)]
        rows.append((*row, _range(rank.kv_heads), _gb(rank.weight_bytes), _gb(rank.cache_bytes), read))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(plan.ranks) > 1:
        total = sum(plan.stored_twice.values())
        kinds = ", ".join(f"{kind} {_gb(size)}" for kind, size in plan.stored_twice.items() if size >= SHOWN * total)
        heads = f"; KV heads {format_cpulist(plan.kv_heads_twice)} and their cache" if plan.kv_heads_twice else ""
        lines.append(f"stored more than once: {_gb(total)} of weights ({kinds}){heads}")
        lines.append(f"imbalance: the busiest rank reads {100 * plan.imbalance:.1f} % more than the mean")
    rank = plan.ranks[0]
    more = 100 * rank.thread_imbalance
    lines.append(
        f"threads per rank: {len(rank.cpus)}; between barriers the busiest reads {more:.1f} % more than the mean; barriers take "
        f"{1e3 * rank.barrier_seconds:.2f} ms of a token"
    )
    each = " of each host" * over
    for room in plan.rooms:
        verdict = "fits" if room.needed_bytes <= room.free_bytes else "DOES NOT FIT"
        lines.append(f"node {room.node}{each}: {_gb(room.needed_bytes)} needed, {_gb(room.free_bytes)} free: {verdict}")
    total = sum(room.needed_bytes for room in plan.rooms)
    if plan.limit is not None and total > plan.limit:
        lines.append(f"memory limit: {_gb(total)} needed, {_gb(plan.limit)} left: DOES NOT FIT")
    between = several.describe(plan.hosts) if plan.hosts else []
    if not plan.snapshot.bandwidth:
        return [*lines, f"predicted decode: bandwidth {plan.snapshot.bandwidth_source}", *between]
    lines.append(f"predicted decode, at most, at an empty and at a full context (bandwidth {plan.snapshot.bandwidth_source}):")
    for p in plan.predictions:
        where = f"{p.ranks} rank{'s' * (p.ranks > 1)} on node{'s' * (len(p.nodes) > 1)} {format_cpulist(p.nodes)}{each}"
        if p.tokens_per_second is None or p.tokens_per_second_full is None:
            speed = "unknown"
        else:
            speed = f"{p.tokens_per_second:.1f} and {p.tokens_per_second_full:.1f} tok/s"
        planned = ", as planned above" if p.ranks == len(plan.ranks) else ""
        lines.append(f"  {where}: {speed}{'' if p.fits else ', but does not fit'}{planned}")
    return [*lines, *between]


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _range(numbers: range) -> str:
    return format_cpulist(numbers) or "none"
