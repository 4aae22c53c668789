"""Ranks without MPI: rank 0 is the calling process, the others are worker processes that it starts."""

import json
import os
import subprocess
import sys
from typing import Any

from numatp.errors import MachineError, RankError
from numatp.machine import limits
from numatp.machine.uninterrupted import uninterrupted
from numatp.ranks.host import Host, make_window
from numatp.ranks.world import World


class Workers:
    """The processes of ranks 1, 2, ...; started before anything slow, so that all ranks load at the same time."""

    def __init__(self, module: str, seats: int, job: dict[str, Any]):
        """Runs `python -P -m module JOB` for each, JOB being the job with its seat, seats, window and parent."""
        self.seats = seats
        self.window = make_window()
        os.set_inheritable(self.window, True)
        self.processes = []
        # Modules are found where this process finds them: `-m` alone would take the working folder's first.
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            for seat in range(1, seats):
                text = json.dumps({**job, "seat": seat, "seats": seats, "window": self.window, "parent": os.getpid()})
                # A new session: Ctrl-C at the terminal goes to rank 0, which ends the others in order.
                with uninterrupted():
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-m", module, text], pass_fds=[self.window], stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL, start_new_session=True, env=environ,
                    )  # fmt: skip
                    self.processes.append(process)
        except BaseException as error:
            self.end()
            if not isinstance(error, OSError):
                raise
            raise MachineError(f"cannot start a worker process: {limits.reason(error.errno or 0)}") from error

    def join(self, crowded: bool) -> World:
        pids = [0] + [process.pid for process in self.processes]
        return World.of_one(Host(0, self.seats, self.window, pids, crowded, self._look))

    def _look(self) -> None:
        for rank, process in enumerate(self.processes, start=1):
            if process.poll() is not None:
                raise RankError(f"rank {rank} (process {process.pid}) ended with status {process.returncode}")

    def end(self) -> None:
        """Before there is a Host that could tell them."""
        for process in self.processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Waits for the workers, which end by themselves once the job is stopped or aborted."""
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def join(job: dict[str, Any], crowded: bool) -> World:
    """The worker's side: from the JOB it was started with."""
    pids = [job["parent"]] + [0] * (job["seats"] - 1)
    return World.of_one(Host(job["seat"], job["seats"], job["window"], pids, crowded, lambda: None))
