"""From a started process to a rank that knows its place, Numba's target and the Comm, in the order that matters.

Nothing here may import numba before the target is set. Only the engine's thread is bound: the caller's own is left alone.
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
    workers: "Workers | None" = None
    mpi: bool = False  # a launcher started this process, so every rank runs the user's script

    def bind(self) -> list[str]:
        """Binds the calling thread, and threads that it starts, to the place; returns sentences worth showing."""
        return placement.bind(self.placement)


def find_places(job: Job, size: int) -> list[placement.Placement]:
    """Where all ranks of this host belong; the same on each of them, unless every rank keeps what its launcher gave it."""
    allowed = frozenset(os.sched_getaffinity(0)) if job.keep_binding else launch.allowed_cpus()[0]
    return placement.place(
        topology.read_machine(), allowed, size, threads=job.threads, nodes=job.nodes, cpus=job.cpus, keep=job.keep_binding
    )


def start(job: Job, ranks: int | None) -> Start:
    """Rank 0 of local ranks, or this rank of the launcher's. `ranks`: how many, None for the launcher's or one per node."""
    launched = launch.read_launch()
    if launched and launched.size > 1:
        if ranks not in (None, launched.size):
            raise UserError(f"--ranks {ranks}: the launcher started {launched.size}; leave --ranks out under {launched.kind}")
        places, rank = find_places(job, launched.local_size), launched.local_rank
        isa.set_numba_target(isa.choose())
        from numatp.ranks.mpi import join

        return Start(join(launched, places[rank].crowded), places[rank], placement.describe(places), mpi=True)
    if ranks is None:
        ranks = placement.auto_ranks(topology.read_machine(), launch.allowed_cpus()[0])
    places = find_places(job, ranks)
    isa.set_numba_target(isa.choose())  # a wrong wish ends here, before there are workers
    if ranks > 1:
        from numatp.ranks.local import Workers

        workers = Workers("numatp.engine.worker", ranks, {"job": asdict(job)})
        return Start(workers.comm(places[0].crowded), places[0], placement.describe(places), workers)
    from numatp.ranks.alone import alone

    return Start(alone(places[0].crowded), places[0], placement.describe(places))


def start_worker(described: dict[str, Any]) -> tuple[Job, Start]:
    """A worker process, from the description it was started with."""
    job, rank = Job(**described["job"]), described["rank"]
    places = find_places(job, described["size"])
    isa.set_numba_target(isa.choose())
    from numatp.ranks.local import join

    return job, Start(join(described, places[rank].crowded), places[rank], placement.describe(places))
