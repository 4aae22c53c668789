"""From a started process to a rank that knows its place: binding, Numba's target and the Comm, in the order that matters.

Nothing here may import numpy or numba before the process is bound and the target set.
"""

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from numatp.engine.job import Job
from numatp.errors import UserError
from numatp.machine import isa, launch, placement, topology

if TYPE_CHECKING:
    from numatp.ranks.comm import Comm
    from numatp.ranks.local import Workers


@dataclass
class Start:
    """This rank at its place."""

    comm: "Comm"
    placement: placement.Placement
    line: str  # the placement of all ranks, for people
    notes: list[str]
    workers: "Workers | None" = None


def find_places(job: Job, size: int) -> list[placement.Placement]:
    """Where all ranks of this host belong; the same on each of them, unless every rank keeps what its launcher gave it."""
    allowed = frozenset(os.sched_getaffinity(0)) if job.keep_binding else launch.allowed_cpus()[0]
    return placement.place(
        topology.read_machine(), allowed, size, threads=job.threads, nodes=job.nodes, cpus=job.cpus, keep=job.keep_binding
    )


def settle(places: list[placement.Placement], rank: int) -> list[str]:
    """Binds this process to its place and sets what Numba compiles for; returns sentences worth showing."""
    notes = placement.bind(places[rank])
    isa.set_numba_target(isa.choose())
    return notes


def start(job: Job, ranks: int | None) -> Start:
    """Rank 0 of local ranks, or this rank of the launcher's. `ranks`: how many, None for the launcher's or one per node."""
    launched = launch.read_launch()
    if launched and launched.size > 1:
        if ranks not in (None, launched.size):
            raise UserError(f"--ranks {ranks}: the launcher started {launched.size}; leave --ranks out under {launched.kind}")
        places, rank = find_places(job, launched.local_size), launched.local_rank
        notes = settle(places, rank)
        from numatp.ranks.mpi import join

        return Start(join(launched, places[rank].crowded), places[rank], placement.describe(places), notes)
    if ranks is None:
        ranks = placement.auto_ranks(topology.read_machine(), launch.allowed_cpus()[0])
    places = find_places(job, ranks)
    isa.choose()  # a wrong wish ends here, before there are workers
    workers = None
    if ranks > 1:
        # Before this process is bound: the workers find their own places in what the whole job was given.
        from numatp.ranks.local import Workers

        workers = Workers("numatp.engine.worker", ranks, {"job": asdict(job)})
    notes = settle(places, 0)
    if workers:
        return Start(workers.comm(places[0].crowded), places[0], placement.describe(places), notes, workers)
    from numatp.ranks.alone import alone

    return Start(alone(places[0].crowded), places[0], placement.describe(places), notes)


def start_worker(described: dict[str, Any]) -> tuple[Job, Start]:
    """A worker process, from the description it was started with."""
    job, rank = Job(**described["job"]), described["rank"]
    places = find_places(job, described["size"])
    notes = settle(places, rank)
    from numatp.ranks.local import join

    return job, Start(join(described, places[rank].crowded), places[rank], placement.describe(places), notes)
