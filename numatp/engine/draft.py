"""What a model would be on so many ranks of a machine, before anything is loaded: their bytes, their room and how fast they decode.

Everything comes from headers. Sizes are computed by the code that loads, so a draft says the bytes that a load will take. No kernel
is compiled.

How fast can decoding be? Bytes over bandwidth, and the price of meeting: one formula for every machine and model. A token needs
each node to read its ranks' weights (of experts only the active ones) and their part of the cache once, at no more than the node's
read bandwidth, and all nodes wait for the slowest. It is a bound: the time of what is computed besides is left out. Where hosts are
joined by a link, every exchange between ranks costs what it costs there as well (engine/links.py), and so do the Step that
goes out and the logits that come back.
"""

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from numatp import models
from numatp.engine.cache import read_bytes
from numatp.engine.job import MARGIN, PROCESS_BYTES, Job, cache_type_of, context_of
from numatp.engine.layout import Layout, Model, lay_out
from numatp.engine.links import Link
from numatp.engine.sections import sections_of
from numatp.errors import UserError
from numatp.files.measured import read_bandwidth
from numatp.files.model_file import ModelFile
from numatp.files.models import resolve_model
from numatp.machine import barrier, placement, snapshot
from numatp.machine.placement import Placement
from numatp.machine.snapshot import Snapshot
from numatp.models import shapes
from numatp.models.spec import Spec
from numatp.weights.rules import Slice
from numatp.weights.splits import SEGMENTS

if TYPE_CHECKING:
    from numatp.program.builder import Program

# Of one all-reduce between ranks: a flag and then data, each fetched from the other socket. One such fetch takes 0.41 to 0.45 us
# on 2x Xeon 6980P (ik_llama.cpp discussion 201); what 32 lanes fetch at once overlaps, and ranks never arrive together.
EXCHANGE_SECONDS = 2e-6
# What a core can read, bytes per second, unless its even share of the bandwidth is more: others tell of 12 to 20 GB/s on servers.
# A prediction assumes more, because it is a bound; a recommendation less, so that a rank keeps more threads than it may need.
CORE_MOST, CORE_LEAST = 20e9, 10e9
WORTH_TRYING = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)  # threads per rank
BEST = 1.05  # times what a token takes with the best number of threads: as good


@dataclass(frozen=True)
class RankPlan:
    """One rank's part; bytes are those that its memory will hold."""

    rank: int
    host: int
    node: int
    cpus: tuple[int, ...]  # one per thread
    heads: range
    kv_heads: range
    weight_bytes: int
    cache_bytes: int
    window_bytes: int  # its part of what ranks share
    read_bytes: int  # of weights, per decoded token: of experts only the active ones, of the embedding one row, left out
    cache_read_bytes: int  # per decoded token when the context is full
    state_read_bytes: int  # the part of it that an empty context needs too
    activation_bytes: int  # of what a Step computes with; 0: not looked at
    thread_imbalance: float  # by how much of the mean its busiest thread reads more weights for a token
    barrier_seconds: float  # of its threads' barriers, per token
    waiting_seconds: float  # for the busiest thread, per token, where it cannot take over all of the bandwidth that others leave
    best_threads: int  # with which a token is predicted to be fastest, or nearly so


@dataclass(frozen=True)
class NodeRoom:
    node: int  # of each host
    needed_bytes: int  # weights, cache, window, activations and margin of its ranks, on the host that needs most
    free_bytes: int


@dataclass(frozen=True)
class Prediction:
    ranks: int  # of all hosts
    nodes: tuple[int, ...]  # of each host
    fits: bool
    tokens_per_second: float | None  # at an empty context; None where a node's bandwidth is unknown
    tokens_per_second_full: float | None  # at a full one


def read_header(model: str) -> Model:
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
    return Model(file, architecture, architecture.read_spec(file))


def choose_ranks(job: Job) -> int:
    """How many ranks this machine should run the job with when nobody says: those with the fastest predicted decode.

    One per usable node where the bandwidth of the nodes is unknown. UserError as make_plan.
    """
    if wanted := shares_wanted(job):
        return wanted
    machine = snapshot.take(measured=read_bandwidth())
    counts = counts_of(machine, job)
    if len(counts) == 1 or not machine.bandwidth:
        return counts[-1]
    model = read_header(job.model)
    return fastest({count: Draft(model, machine, job, count) for count in counts}, counts)


def shares_wanted(job: Job) -> int | None:
    """How many ranks the shares of -ts are for, if there are some."""
    return None if job.tensor_split is None or isinstance(job.tensor_split, str) else len(job.tensor_split)


@dataclass(frozen=True)
class Hosts:
    """So many hosts alike, and what joins them."""

    count: int
    link: Link


class Draft:
    """The model on so many ranks."""

    def __init__(
        self, model: Model, machine: Snapshot, job: Job, seats: int, hosts: Hosts | None = None, rehearse: "Draft | None" = None
    ):  # fmt: skip
        """seats: ranks of a host. hosts: None for the machine alone, else it is each of them.

        The program of a token is recorded, a tenth of a second, to know how threads divide the weights and how often they meet.
        rehearse: a draft of the same, or with more threads; the other programs are now recorded too, to know what a Step computes
        with.
        """
        from numatp.engine.programs import MANY_ROWS, ONE_ROW, SCORES
        from numatp.engine.rehearsal import rehearse as record

        count = hosts.count if hosts else 1
        size = count * seats
        self.rehearsed = rehearse is not None
        spec, context = model.spec, context_of(job, model.spec.context)
        kept = cache_type_of(job, spec.layers)
        self.kinds: Counter[str] = Counter()  # bytes of all ranks
        self.ranks: list[RankPlan] = []
        places = placement.place(machine.given, machine.allowed, seats, threads=job.threads, nodes=job.nodes, cpus=job.cpus)
        # Shares that were given are for one number of ranks; the others are there to compare with.
        wish = job.tensor_split if isinstance(job.tensor_split, str) or size == len(job.tensor_split or ()) else None
        nodes_of_ranks = [place.node for place in places] * count
        job = replace(job, tensor_split=wish)
        self.layouts: list[Layout] = (  # by rank
            rehearse.layouts if rehearse else [lay_out(model, job, rank, nodes_of_ranks, machine.bandwidth) for rank in range(size)]
        )
        sections = sections_of(spec, job, context, len(self.layouts[0].pools))
        lanes = min(len(place.cpus) for place in places)
        self.one_row: dict[Hashable, Program] = dict(rehearse.one_row) if rehearse else {}
        found: dict[Hashable, tuple[int, float, float, float, int]] = {}
        for rank, layout in enumerate(self.layouts):
            host, place = rank // seats, places[rank % seats]
            mine = layout.split
            self.kinds += bytes_by_kind(layout.slices)
            read = sum(read_per_token(piece, spec) for piece in layout.slices)
            kv_heads = mine.get("kv_heads", range(0))
            own = (rank, host, place.node, place.cpus, mine.heads, kv_heads, layout.weight_bytes, layout.cache.num_bytes)
            reads = (read, read_bytes(spec, mine, context, kept), read_bytes(spec, mine, 0, kept))
            # The first rank adds what is added once; others with parts of the same sizes have the same programs.
            shared = tuple(sorted(Counter(place.l3).values()))  # L3s
            alike = (rank == 0, lanes, shared, tuple(piece.num_bytes for piece in layout.slices))
            bandwidth = machine.bandwidth.get(place.node, inf) / [other.node for other in places].count(place.node)
            if (alike, bandwidth) not in found:
                where = (model, layout, sections, place.seat, seats, len(place.cpus), lanes)
                if alike not in self.one_row:
                    self.one_row[alike] = record(ONE_ROW, *where)
                one_row = self.one_row[alike]
                activations = 0
                if rehearse:
                    others = [record(kind, *where) for kind in (MANY_ROWS, SCORES)]
                    activations = max(program.activation_bytes for program in (one_row, *others))
                    if hosts:  # a Step in two halves, each with memory of its own
                        activations = max(activations, 2 * others[0].activation_bytes)
                found[alike, bandwidth] = (activations, *_of_threads(one_row, place, bandwidth))
            activations, imbalance, barriers, waiting, best = found[alike, bandwidth]
            between = sections.between_hosts([seats] * count, host, place.seat, False) if hosts else 0
            read_of = (*own, sections.bytes_of(place.seat) + between, *reads)
            self.ranks.append(RankPlan(*read_of, activations, imbalance, barriers, waiting, best))
        self.holder, self.sections = machine.holder, sections
        self.rooms = []
        for node in sorted({machine.holder(rank.node) for rank in self.ranks}):
            needed = [0] * count
            for held in self.ranks:
                if machine.holder(held.node) == node:
                    own_bytes = held.weight_bytes + held.cache_bytes + held.window_bytes + held.activation_bytes
                    needed[held.host] += own_bytes + MARGIN
            self.rooms.append(NodeRoom(node, max(needed), machine.free.get(node, 0)))
        self.limit = None if machine.limit is None else max(0, machine.limit - seats * PROCESS_BYTES)  # left for the rooms' bytes
        nodes = tuple(sorted({place.node for place in places}))
        self.crossing = crossing_seconds(spec, hosts, sections.step.num_bytes) if hosts else 0.0
        self.prediction = Prediction(size, nodes, fits(self.rooms, self.limit), None, None)
        if all(node in machine.bandwidth for node in nodes):
            rates = []
            for full in (False, True):
                seconds = max(self._seconds(host, machine.bandwidth, full, spec.exchanges * (seats > 1)) for host in range(count))
                rates.append(1 / (seconds + self.crossing))
            self.prediction = Prediction(size, nodes, fits(self.rooms, self.limit), *rates)

    def _seconds(self, host: int, bandwidth: Mapping[int, float], full: bool, exchanges: int) -> float:
        """What a token takes on one host. full: the context is."""
        read: Counter[int] = Counter()
        for rank in self.ranks:
            if rank.host == host:
                read[rank.node] += rank.read_bytes + (rank.cache_read_bytes if full else rank.state_read_bytes)
        threads = max(rank.barrier_seconds + rank.waiting_seconds for rank in self.ranks if rank.host == host)
        return seconds_per_token(read, bandwidth, exchanges) + threads

    @property
    def threads(self) -> int | None:
        """Per rank, where fewer than the smallest of them has cores are predicted to be better; None: one for each core."""
        best = min(rank.best_threads for rank in self.ranks)
        return best if best < min(len(rank.cpus) for rank in self.ranks) else None


def _of_threads(one_row: "Program", place: Placement, bandwidth: float) -> tuple[float, float, float, int]:
    """What a RankPlan has from thread_imbalance on. bandwidth: of the rank, bytes per second; inf: nobody knows it."""
    threads = len(place.cpus)
    imbalance = one_row.busiest_bytes(threads) * threads / max(one_row.weight_bytes, 1) - 1
    waiting = read_seconds(one_row, threads, bandwidth, max(CORE_MOST, bandwidth / threads)) - one_row.weight_bytes / bandwidth
    barriers = sum(op.barrier for op in one_row.ops) + 1  # and one at the end
    best = best_threads(one_row, barriers, place, bandwidth)
    return imbalance, barriers * barrier.seconds(place.l3), waiting, best


def read_seconds(one_row: "Program", threads: int, bandwidth: float, core: float) -> float:
    """Of a token's weights. Those who still read share the bandwidth, but none gets more than `core`."""
    if bandwidth == inf:
        return 0.0
    readers = np.arange(threads, 0, -1)
    seconds = 0.0
    for times, read in one_row.shares(threads):
        steps = np.diff(np.sort(read), prepend=0.0)  # bytes until the next thread is done
        seconds += times * float((steps * np.maximum(readers / bandwidth, 1 / core)).sum())
    return seconds


def best_threads(one_row: "Program", barriers: int, place: Placement, bandwidth: float) -> int:
    """Of those of a rank the most with which a token is within BEST of the fastest: prompts are the faster the more there are.

    bandwidth: of the rank, bytes per second; where nobody knows it all threads are best.
    """
    most = len(place.cpus)
    if bandwidth == inf:
        return most
    seconds = {}
    for threads in {most, *(count for count in WORTH_TRYING if count < most)}:
        groups = [place.l3[i * most // threads] for i in range(threads)]
        core = max(CORE_LEAST, bandwidth / most)
        seconds[threads] = read_seconds(one_row, threads, bandwidth, core) + barriers * barrier.seconds(groups)
    fastest = min(seconds.values())
    return max(threads for threads, taken in seconds.items() if taken <= fastest * BEST)


def choose_threads(job: Job, ranks: int) -> int | None:
    """How many threads each of so many ranks of this machine should have when nobody says; None: one for each core. UserError as
    make_plan.
    """
    machine = snapshot.take(measured=read_bandwidth())
    return Draft(read_header(job.model), machine, job, ranks).threads if machine.bandwidth else None


def counts_of(machine: Snapshot, job: Job) -> list[int]:
    """Numbers of ranks worth comparing, ascending; the last is one per usable node, where it may be."""
    if job.cpus:
        return [len(job.cpus.split("|"))]
    usable = {node.id for node in placement.usable_nodes(machine.given, machine.allowed)}
    if job.nodes:
        wanted = placement.parse_list(job.nodes, "--nodes")
        usable = usable & set(wanted) or set(wanted)
    packages = {core.package for core in machine.machine.cores if core.node in usable}
    nodes = max(1, len(usable))
    counts = sorted({1, min(max(1, len(packages)), nodes), nodes})
    return [count for count in counts if not job.same_bits or SEGMENTS % count == 0]


def fastest(drafts: Mapping[int, Draft], counts: list[int]) -> int:
    """Of those that fit; of equals the fewest ranks. The most nodes where none fits or nothing is predicted."""
    possible = {count: drafts[count].prediction for count in counts if drafts[count].prediction.fits}
    if not possible or any(p.tokens_per_second is None for p in possible.values()):
        return counts[-1]
    return max(sorted(possible), key=lambda count: possible[count].tokens_per_second or -inf)


def seconds_per_token(read_bytes: Mapping[int, float], bandwidth: Mapping[int, float], exchanges: int = 0) -> float:
    """read_bytes: per token, by node. bandwidth: bytes per second, of every such node. exchanges: per token, 0 for one rank.

    KeyError for a node of unknown bandwidth.
    """
    return max(size / bandwidth[node] for node, size in read_bytes.items()) + exchanges * EXCHANGE_SECONDS


def crossing_seconds(spec: Spec, hosts: Hosts, step_bytes: int) -> float:
    """What a token spends between hosts: its exchanges, the Step that goes out, and the logits that come back to rank 0."""
    link, count = hosts.link, hosts.count
    logits = link.seconds(4 * spec.sizes.vocab / count, count)
    return spec.exchanges * link.seconds(message_bytes(spec), count) + link.seconds(step_bytes, count) + logits


def message_bytes(spec: Spec) -> int:
    """Of what a host sends to each other one in an exchange of one row: float32."""
    return 4 * spec.sizes.width


def read_per_token(piece: Slice, spec: Spec) -> int:
    """As the ops count it (Op.num_bytes): matrices, of which the embedding is read only where it is the output matrix too."""
    if not piece.rule.in_tiles or piece.rule.kind == "embedding":
        return 0
    return piece.num_bytes // piece.stacked * spec.experts_used if piece.rule.stack == "experts" else piece.num_bytes


def bytes_by_kind(slices: Iterable[Slice]) -> Counter[str]:
    """In memory, by what a tensor is called in its layer: attn_k of blk.7.attn_k.weight."""
    kinds: Counter[str] = Counter()
    for piece in slices:
        kinds[re.sub(r"^blk\.\d+\.|\.weight$", "", piece.info.name)] += piece.num_bytes
    return kinds


def fits(rooms: Iterable[NodeRoom], limit: int | None) -> bool:
    needed = sum(room.needed_bytes for room in rooms)
    return all(room.needed_bytes <= room.free_bytes for room in rooms) and (limit is None or needed <= limit)
