"""The pinned threads of one rank, which the C runtime holds (native/numatp.h)."""

import ctypes
from collections.abc import Sequence

import numpy as np

from numatp.errors import MachineError
from numatp.kernels.compile import Kernel
from numatp.machine import limits, native
from numatp.program.builder import Op, Program
from numatp.ranks.host import Host


class Team:
    """Must be made and used by one thread, which becomes its thread 0 and is pinned."""

    def __init__(self, host: Host, cpus: Sequence[int], groups: Sequence[int]):
        """cpus: one per thread, -1 to pin it nowhere; groups: the L3 cache of each. MachineError if a thread cannot start."""
        self.threads, self._host, self._library = len(cpus), host, native.library()
        array = ctypes.c_int32 * len(cpus)
        self.handle = self._library.numatp_team_open(host.handle, self.threads, array(*cpus), array(*groups))
        if not self.handle:
            raise MachineError(f"rank {host.seat} cannot start {self.threads} threads: {limits.reason(ctypes.get_errno())}")

    def run(self, kernel: Kernel, record: np.ndarray) -> None:
        """One kernel on all threads of this rank."""
        self.run_each([(kernel, record)])

    def run_each(self, calls: Sequence[tuple[Kernel, np.ndarray]]) -> None:
        """Kernels one after another on all threads of this rank; no thread waits for another in between."""
        self.run_program(Program("calls", [Op(kernel.name, kernel, record, [], []) for kernel, record in calls], 0))

    def run_program(self, program: Program) -> None:
        """A program without syncs on this rank alone."""
        self._host.check(self._library.numatp_team_run(self.handle, ctypes.byref(program.record)))

    def set_programs(self, programs: Sequence[Program]) -> None:
        """What a Step can name by index: the same sequence on every rank."""
        self._programs = programs
        self._records = (native.ProgramRecord * len(programs))(*(program.record for program in programs))
        self._library.numatp_team_programs(self.handle, self._records, len(programs))

    def step(self, program: int) -> None:
        """Rank 0: runs a program on all ranks."""
        self._host.check(self._library.numatp_team_step(self.handle, program))

    def serve(self) -> None:
        """Other ranks: runs Steps until rank 0 stops."""
        status = self._library.numatp_team_serve(self.handle)
        if status != native.STOPPED:
            self._host.check(status)

    def stop(self) -> None:
        """Rank 0: ends the service on the other ranks."""
        if self.handle:
            self._library.numatp_team_stop(self.handle)

    def close(self) -> None:
        if self.handle:
            self._library.numatp_team_close(self.handle)
            self.handle = None
