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
    machine: topology.Machine
    line: str  # the placement of all ranks, for people
    notes: list[str]
    workers: "Workers | None" = None


def place(job: Job, rank: int, size: int) -> tuple[topology.Machine, placement.Placement, str, list[str]]:
    machine = topology.read_machine()
    keep = job.keep_binding
    allowed = frozenset(os.sched_getaffinity(0)) if keep else launch.allowed_cpus()[0]
    placements = placement.place(
        machine, allowed, size, threads=job.threads, nodes=job.nodes, cpus=job.cpus, keep=keep
    )  # fmt: skip
    notes = placement.bind(placements[rank])
    isa.set_numba_target(isa.choose())
    return machine, placements[rank], placement.describe(placements), notes


def start(job: Job, ranks: int | None) -> Start:
    """Rank 0 of local ranks, or this rank of the launcher's. `ranks`: how many, None for the launcher's or one per node."""
    launched = launch.read_launch()
    if launched and launched.size > 1:
        if ranks not in (None, launched.size):
            raise UserError(f"--ranks {ranks}: the launcher started {launched.size}; leave --ranks out under {launched.kind}")
        machine, place_, line, notes = place(job, launched.local_rank, launched.local_size)
        from numatp.ranks.mpi import join

        return Start(join(launched, place_.crowded), place_, machine, line, notes)
    if ranks is None:
        ranks = placement.auto_ranks(topology.read_machine(), launch.allowed_cpus()[0])
    workers = None
    if ranks > 1:
        # Before this process is bound: the workers find their own places in what the whole job was given.
        from numatp.ranks.local import Workers

        workers = Workers("numatp.engine.worker", ranks, {"job": asdict(job)})
    machine, place_, line, notes = place(job, 0, ranks)
    if workers:
        return Start(workers.comm(place_.crowded), place_, machine, line, notes, workers)
    from numatp.ranks.alone import alone

    return Start(alone(place_.crowded), place_, machine, line, notes)


def start_worker(described: dict[str, Any]) -> tuple[Job, Start]:
    """A worker process, from the description it was started with."""
    job = Job(**described["job"])
    machine, place_, line, notes = place(job, described["rank"], described["size"])
    from numatp.ranks.local import join

    return job, Start(join(described, place_.crowded), place_, machine, line, notes)
