"""From a started process to a rank that knows its place and the others, in the order that matters.

Only the engine's thread is bound: the caller's own is left alone.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from numatp.engine.job import Job
from numatp.errors import NumatpError, UserError
from numatp.files.cache import kernels_dir
from numatp.files.models import resolve_model
from numatp.machine import isa, launch, limits, placement, topology
from numatp.machine.parent import end_with

if TYPE_CHECKING:
    from numatp.ranks.local import Workers
    from numatp.ranks.world import World

FEW_THREADS = 16  # per rank, up to which each core has one: nothing is predicted, which would take a part of a start


@dataclass
class StartedRank:
    """This process as a rank at its place, which has met the others."""

    world: "World"
    placement: placement.Placement
    line: str  # the placement of all ranks, for people
    workers: "Workers | None" = None
    pids: list[int] = field(default_factory=list)  # the process of every rank of this host
    mpi: bool = False  # a launcher started this process, so every rank runs the user's script
    notes: list[str] = field(default_factory=list)  # sentences worth showing
    interleave: Sequence[int] | None = None  # nodes

    def bind(self) -> None:
        """Binds the calling thread, and threads that it starts, to the place. Collective."""
        failure = None
        try:
            self.notes += placement.bind(self.placement, self.interleave)
        except NumatpError as error:
            failure = error
        self.world.agree(failure)


def find_model(name: str) -> str:
    """The path of a model. Each host has files of its own: what one rank of several hosts does not find is raised on all, when they
    meet.
    """
    try:
        return os.fspath(resolve_model(name))
    except UserError as failure:
        launched = launch.read_launch()
        if launched and launched.local_size != launched.size:
            _ranks("mpi").join(launched, crowded=False).agree(failure)  # as in take_place, where the others come to
        raise


def find_places(job: Job, size: int) -> list[placement.Placement]:
    """Where all ranks of this host belong; the same on each of them, unless every rank keeps what its launcher gave it."""
    allowed = frozenset(os.sched_getaffinity(0)) if job.keep_binding else launch.allowed_cpus()[0]
    machine = topology.with_memory_of(topology.read_machine(), topology.allowed_nodes())
    return placement.place(machine, allowed, size, threads=job.threads, nodes=job.nodes, cpus=job.cpus, keep=job.keep_binding)


def with_threads(job: Job, ranks: int) -> Job:
    """The job with as many threads per rank as are predicted to be best, if nobody said and there are cores to choose from."""
    if job.threads or job.keep_binding or all(len(place.cpus) <= FEW_THREADS for place in find_places(job, ranks)):
        return job
    from numatp.engine.draft import choose_threads  # reads headers, with numpy

    return replace(job, threads=choose_threads(job, ranks))


def take_place(job: Job, seats: int, seat: int, join: "Callable[[bool], World]") -> StartedRank:
    """Finds this process its place at seat `seat` of `seats` of this host, and only then meets the others.

    join(crowded) is the meeting. What failed on one rank is raised on all.
    """
    places: list[placement.Placement] = []
    notes: list[str] = []
    failure = None
    try:
        places = find_places(job, seats)
        notes += filter(None, [kernels_dir()[1]])
        if isa.choose() != isa.level():
            notes.append("NUMATP_ISA has no effect: this process had chosen before")
    except NumatpError as error:
        failure = error
    world = join(bool(places) and places[seat].crowded)
    world.agree(failure)
    if job.keep_binding:
        places = placement.compare(world.host.gather(placement.told(places[seat])), places[seat])
        world.host.set_crowded(places[seat].crowded)
    line = world.describe(lambda first: placement.describe(places, first))
    pids = world.host.gather(os.getpid())
    return StartedRank(world, places[seat], line, pids=pids, notes=notes, interleave=job.interleave)


def start_ranks(job: Job, ranks: int | None, worker: str = "numatp.engine.worker") -> StartedRank:
    """Rank 0 of local ranks, or this rank of the launcher's.

    ranks: how many, None for the launcher's or the fastest number. worker: the module that the other local ranks run.
    """
    limits.check()
    launched = launch.read_launch()
    if launched and launched.size > 1:
        if ranks not in (None, launched.size):
            raise UserError(f"--ranks {ranks}: the launcher started {launched.size}; leave --ranks out under {launched.starter}")
        if launched.size > placement.MAX_RANKS:
            raise UserError(f"{launched.starter} started {launched.size} ranks: ask it for {placement.MAX_RANKS} at most")
        launcher = launch.find_launcher()
        if launcher:
            end_with(launcher[0])
        started = take_place(job, launched.local_size, launched.local_rank, lambda crowded: _ranks("mpi").join(launched, crowded))
        started.mpi = True
        return started
    if ranks is None:
        from numatp.engine.draft import choose_ranks  # reads headers, with numpy

        ranks = choose_ranks(job)
    if ranks == 1:
        return take_place(with_threads(job, 1), 1, 0, lambda crowded: _ranks("alone").alone(crowded))
    job = with_threads(job, ranks)
    find_places(job, ranks)
    level = isa.level()  # a wrong wish ends here, before there are workers
    workers = _ranks("local").Workers(worker, ranks, {"job": asdict(job), "isa": level.name})
    try:
        started = take_place(job, ranks, 0, workers.join)
    except BaseException:
        workers.end()
        raise
    started.workers = workers
    return started


def join_as_worker(described: dict[str, Any]) -> tuple[Job, StartedRank]:
    """A worker process, from the description it was started with."""
    job = Job(**described["job"])
    os.environ["NUMATP_ISA"] = described["isa"]  # rank 0 may have chosen before its environment said something else
    return job, take_place(job, described["seats"], described["seat"], lambda crowded: _ranks("local").join(described, crowded))


def _ranks(name: str) -> Any:
    """A module that loads numpy, so not before it is needed."""
    return import_module(f"numatp.ranks.{name}")
