"""What a model would be on a machine, before anything is loaded: whose slice lies where, does it fit, how fast can it decode.

Everything comes from headers. Sizes are computed by the code that loads, so a plan says the bytes that a load will take. No Numba
is loaded, because how many ranks there will be is asked before its target is set.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from numatp import models, quants
from numatp.engine.cache import CacheLayout, pools_of, read_bytes
from numatp.engine.job import MARGIN, Job, cache_type_of, context_of, quantize_of, rows_of
from numatp.errors import UserError
from numatp.files.measured import read_bandwidth
from numatp.files.model_file import ModelFile
from numatp.files.models import resolve_model
from numatp.machine import placement, snapshot
from numatp.machine.prediction import seconds_per_token
from numatp.machine.snapshot import Snapshot
from numatp.machine.topology import format_cpulist
from numatp.models import shapes
from numatp.models.spec import Spec
from numatp.weights.loader import Matrix, Rule, Slice
from numatp.weights.loader import plan as plan_slices
from numatp.weights.splits import Split, shares_of, split

SECOND_NORMS = ("ffn_norm", "post_attention_norm")  # a layer with one of them has an exchange after attention as well
SHOWN = 0.02  # of what is stored more than once: smaller kinds are not listed


@dataclass(frozen=True)
class Header:
    """What a plan reads of a model."""

    file: ModelFile
    spec: Spec
    rules: list[Rule]
    experts_used: int  # by each token


@dataclass(frozen=True)
class RankPlan:
    """One rank's part; bytes are those that its memory will hold."""

    rank: int
    node: int
    cpus: tuple[int, ...]  # one per thread
    heads: range
    kv_heads: range
    weight_bytes: int
    cache_bytes: int
    read_bytes: int  # of weights, per decoded token: of experts only the active ones, of the embedding one row, left out
    cache_read_bytes: int  # per decoded token when the context is full
    state_read_bytes: int  # the part of it that an empty context needs too


@dataclass(frozen=True)
class NodeRoom:
    node: int
    needed_bytes: int  # weights, cache and margin of its ranks
    free_bytes: int


@dataclass(frozen=True)
class Prediction:
    ranks: int
    nodes: tuple[int, ...]
    fits: bool
    tokens_per_second: float | None  # at an empty context; None where a node's bandwidth is unknown
    tokens_per_second_full: float | None  # at a full one


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
    limit: int | None  # bytes that the job's memory limit leaves
    predictions: tuple[Prediction, ...]  # for one node, one rank per package, all nodes, and the count that was asked for
    snapshot: Snapshot

    @property
    def imbalance(self) -> float:
        """By how much of the mean the busiest rank reads more than the mean."""
        reads = [rank.read_bytes + rank.cache_read_bytes for rank in self.ranks]
        return max(reads) * len(reads) / max(sum(reads), 1) - 1

    @property
    def fits(self) -> bool:
        return _fits(self.rooms, self.limit)


def read_header(model: str) -> Header:
    """Of a GGUF file, a Hugging Face folder, a pulled model or a known shape. UserError for anything else, and what is damaged."""
    file: ModelFile | None = None if os.path.exists(model) else shapes.header(model)
    if file:
        architecture = models.find(file)
    else:
        try:
            path = resolve_model(model)
        except UserError as error:
            raise UserError(f"{error}; shapes that need no file: {shapes.names()}") from None
        file, architecture = models.open_model(path)
    spec = architecture.read_spec(file)
    return Header(file, spec, architecture.rules(spec), getattr(spec, "experts_used", 0))


def make_plan(model: Header, machine: Snapshot, job: Job, ranks: int | None = None) -> ModelPlan:
    """ranks: None for the fastest that fits. UserError for a model that cannot be cut or a context that it was not trained for."""
    counts = _counts(machine, job)
    wanted = shares_wanted(job)
    if wanted and ranks and ranks != wanted:
        raise UserError(f"--ranks {ranks}: -ts has shares for {wanted} ranks; leave one of them out")
    ranks = ranks or wanted
    drafts = {count: _Draft(model, machine, job, count) for count in {*counts, *filter(None, [ranks])}}
    chosen = drafts[ranks or _fastest(drafts, counts)]
    one = _bytes_by_kind(_slices(model, job, split(model.spec.sizes, 0, 1))[0])
    held = [kv_head for rank in chosen.ranks for kv_head in rank.kv_heads]
    return ModelPlan(
        model=str(model.file.path), file_bytes=model.file.size, context=context_of(job, model.spec.context),
        layers=len(model.spec.layers), exchanges=_exchanges(model), ranks=tuple(chosen.ranks),
        stored_twice={kind: size - one[kind] for kind, size in sorted(chosen.kinds.items()) if size > one[kind]},
        kv_heads_twice=tuple(sorted({head for head in held if held.count(head) > 1})), rooms=tuple(chosen.rooms),
        limit=machine.limit, predictions=tuple(drafts[count].prediction for count in sorted(drafts)), snapshot=machine,
    )  # fmt: skip


def choose_ranks(job: Job) -> int:
    """How many ranks this machine should run the job with when nobody says: those with the fastest predicted decode.

    One per usable node where the bandwidth of the nodes is unknown. UserError as make_plan.
    """
    if wanted := shares_wanted(job):
        return wanted
    machine = snapshot.take(measured=read_bandwidth())
    counts = _counts(machine, job)
    if len(counts) == 1 or not machine.bandwidth:
        return counts[-1]
    model = read_header(job.model)
    return _fastest({count: _Draft(model, machine, job, count) for count in counts}, counts)


def shares_wanted(job: Job) -> int | None:
    """How many ranks the shares of -ts are for, if there are some."""
    return None if job.tensor_split is None or isinstance(job.tensor_split, str) else len(job.tensor_split)


def to_json(plan: ModelPlan) -> dict[str, Any]:
    """Bytes, tokens per second, and ranges as [first, behind the last]."""
    described = {name: value for name, value in vars(plan).items() if name != "snapshot"}
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
    rows = [("rank", "node", "cpus", "heads", "KV heads", "weights", "cache", "reads per token: weights + full cache")]
    for rank in plan.ranks:
        read = f"{_gb(rank.read_bytes)} + {_gb(rank.cache_read_bytes)}"
        rows.append(
            (
                str(rank.rank), str(rank.node), format_cpulist(rank.cpus), _range(rank.heads), _range(rank.kv_heads),
                _gb(rank.weight_bytes), _gb(rank.cache_bytes), read,
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(plan.ranks) > 1:
        total = sum(plan.stored_twice.values())
        kinds = ", ".join(f"{kind} {_gb(size)}" for kind, size in plan.stored_twice.items() if size >= SHOWN * total)
        heads = f"; KV heads {format_cpulist(plan.kv_heads_twice)} and their cache" if plan.kv_heads_twice else ""
        lines.append(f"stored more than once: {_gb(total)} of weights ({kinds}){heads}")
        lines.append(f"imbalance: the busiest rank reads {100 * plan.imbalance:.1f} % more than the mean")
    for room in plan.rooms:
        verdict = "fits" if room.needed_bytes <= room.free_bytes else "DOES NOT FIT"
        lines.append(f"node {room.node}: {_gb(room.needed_bytes)} needed, {_gb(room.free_bytes)} free: {verdict}")
    total = sum(room.needed_bytes for room in plan.rooms)
    if plan.limit is not None and total > plan.limit:
        lines.append(f"memory limit: {_gb(total)} needed, {_gb(plan.limit)} left: DOES NOT FIT")
    if not plan.snapshot.bandwidth:
        return [*lines, f"predicted decode: bandwidth {plan.snapshot.bandwidth_source}"]
    lines.append(f"predicted decode, at most, at an empty and at a full context (bandwidth {plan.snapshot.bandwidth_source}):")
    for p in plan.predictions:
        where = f"{p.ranks} rank{'s' * (p.ranks > 1)} on node{'s' * (len(p.nodes) > 1)} {format_cpulist(p.nodes)}"
        if p.tokens_per_second is None or p.tokens_per_second_full is None:
            speed = "unknown"
        else:
            speed = f"{p.tokens_per_second:.1f} and {p.tokens_per_second_full:.1f} tok/s"
        planned = ", as planned above" if p.ranks == len(plan.ranks) else ""
        lines.append(f"  {where}: {speed}{'' if p.fits else ', but does not fit'}{planned}")
    return lines


class _Draft:
    """The model on so many ranks."""

    def __init__(self, model: Header, machine: Snapshot, job: Job, size: int):
        spec, context = model.spec, context_of(job, model.spec.context)
        pools = pools_of(spec, context, job.max_sequences, rows_of(job, context))
        kept = cache_type_of(job, spec.sizes.head_size)
        self.kinds: Counter[str] = Counter()  # bytes of all ranks
        self.ranks: list[RankPlan] = []
        places = placement.place(machine.given, machine.allowed, size, threads=job.threads, nodes=job.nodes, cpus=job.cpus)
        # Shares that were given are for one number of ranks; the others are there to compare with.
        wish = job.tensor_split if isinstance(job.tensor_split, str) or size == len(job.tensor_split or ()) else None
        shares = shares_of(wish, [place.node for place in places], machine.bandwidth)
        for place in places:
            cut = split(spec.sizes, place.rank, size, shares)
            slices, weight_bytes = _slices(model, job, cut)
            self.kinds += _bytes_by_kind(slices)
            cache, read = CacheLayout(spec, cut, pools, job.max_sequences, kept), sum(_read_per_token(s, model) for s in slices)
            own = (place.rank, place.node, place.cpus, cut.heads, cut.kv_heads, weight_bytes, cache.num_bytes, read)
            self.ranks.append(RankPlan(*own, read_bytes(spec, cut, context, kept), read_bytes(spec, cut, 0, kept)))
        self.rooms = []
        for node in sorted({machine.holder(rank.node) for rank in self.ranks}):
            held = [rank for rank in self.ranks if machine.holder(rank.node) == node]
            needed = sum(rank.weight_bytes + rank.cache_bytes + MARGIN for rank in held)
            self.rooms.append(NodeRoom(node, needed, machine.free.get(node, 0)))
        fits = _fits(self.rooms, machine.limit)
        nodes = tuple(sorted({rank.node for rank in self.ranks}))
        exchanges = _exchanges(model) if size > 1 else 0
        empty, full = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0)
        for rank in self.ranks:
            empty[rank.node] += rank.read_bytes + rank.state_read_bytes
            full[rank.node] += rank.read_bytes + rank.cache_read_bytes
        if all(node in machine.bandwidth for node in nodes):
            rates = [1 / seconds_per_token(read, machine.bandwidth, exchanges) for read in (empty, full)]
            self.prediction = Prediction(size, nodes, fits, *rates)
        else:
            self.prediction = Prediction(size, nodes, fits, None, None)


def _counts(machine: Snapshot, job: Job) -> list[int]:
    """Numbers of ranks worth comparing, ascending; the last is one per usable node."""
    if job.cpus:
        return [len(job.cpus.split("|"))]
    usable = {node.id for node in placement.usable_nodes(machine.given, machine.allowed)}
    if job.nodes:
        wanted = placement.parse_list(job.nodes, "--nodes")
        usable = usable & set(wanted) or set(wanted)
    packages = {core.package for core in machine.machine.cores if core.node in usable}
    nodes = max(1, len(usable))
    return sorted({1, min(max(1, len(packages)), nodes), nodes})


def _fastest(drafts: Mapping[int, _Draft], counts: list[int]) -> int:
    """Of those that fit; of equals the fewest ranks. The most nodes where none fits or nothing is predicted."""
    possible = {count: drafts[count].prediction for count in counts if drafts[count].prediction.fits}
    if not possible or any(p.tokens_per_second is None for p in possible.values()):
        return counts[-1]
    return max(sorted(possible), key=lambda count: possible[count].tokens_per_second or -inf)


def _read_per_token(piece: Slice, model: Header) -> int:
    """As the ops count it (Op.num_bytes): matrices, of which the embedding is read only where it is the output matrix too."""
    target = piece.target
    if not isinstance(target, Matrix) or (piece.info.name == "token_embd.weight" and not model.spec.tied):
        return 0
    return target.num_bytes if target.experts == 1 else target.num_bytes // target.experts * model.experts_used


def _exchanges(model: Header) -> int:
    """Per token: one for the embedding, one for each layer, and one more where its two halves follow each other."""
    names = {rule.name.rpartition(".")[0] for rule in model.rules}
    return 1 + sum(1 + any(f"blk.{layer}.{norm}" in names for norm in SECOND_NORMS) for layer in range(len(model.spec.layers)))


def _slices(model: Header, job: Job, cut: Split) -> tuple[list[Slice], int]:
    return plan_slices(model.file, model.rules, model.spec.sizes, cut, quantize_of(job, model.file), quants.sizes)


def _bytes_by_kind(slices: Iterable[Slice]) -> Counter[str]:
    """In memory, by what a tensor is called in its layer: attn_k of blk.7.attn_k.weight."""
    kinds: Counter[str] = Counter()
    for piece in slices:
        kinds[re.sub(r"^blk\.\d+\.|\.weight$", "", piece.info.name)] += piece.target.num_bytes
    return kinds


def _fits(rooms: Iterable[NodeRoom], limit: int | None) -> bool:
    needed = sum(room.needed_bytes for room in rooms)
    return all(room.needed_bytes <= room.free_bytes for room in rooms) and (limit is None or needed <= limit)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _range(numbers: range) -> str:
    return format_cpulist(numbers) or "none"
