"""WHO is on other hosts? This rank's links to them, through the MPI that mpi4py has loaded; the C runtime makes the calls
(native/hosts.c). The first MPI rank of a host has seat 0 there and speaks for it: the *leader*.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numatp.errors import MachineError, RankError
from numatp.machine import native
from numatp.ranks.host import Host


@dataclass(frozen=True)
class Members:
    """The hosts of a job and who sits where: the same on every rank."""

    names: Sequence[str]
    seats: Sequence[int]  # how many each host has

    @property
    def size(self) -> int:
        """Ranks of all hosts."""
        return sum(self.seats)

    def first_rank(self, host: int) -> int:
        """Of a host: ranks are numbered host by host, and there by seat."""
        return sum(self.seats[:host])

    def ranks_of(self, host: int) -> range:
        """The ranks of a host."""
        first = self.first_rank(host)
        return range(first, first + self.seats[host])

    def host_of(self, rank: int) -> int:
        return next(host for host in range(len(self.seats)) if rank in self.ranks_of(host))

    @property
    def wires(self) -> int:
        """How many ranks of each host exchange sums with other hosts, each a slice: as many as every host has."""
        return min(self.seats)


class Hosts:
    """This process's place among the hosts; it lives as long as the process."""

    def __init__(self, MPI: Any, communicator: Any, members: Members, index: int, seat: int):
        """MPI: of mpi4py. communicator: ours alone, whose errors return, and whose ranks are the job's. index: of this host."""
        self.members, self.index, self.leads = members, index, seat == 0
        self._library = native.library()
        self._keep = communicator  # its handle is in C's hands
        self._swapping = False
        self._in_use: list[tuple[bytes, Any]] = []  # memory of swaps; MPI may write there after one that was given up
        mpi = _mpi(MPI, communicator)
        count = len(members.seats)
        leaders = (ctypes.c_int32 * count)(*map(members.first_rank, range(count)))
        names = (ctypes.c_char_p * count)(*(name.encode() for name in members.names))
        self.handle = self._library.numatp_hosts_open(ctypes.byref(mpi), index, count, seat, leaders, names)
        if not self.handle:
            raise MachineError(f"cannot join the other hosts: {os.strerror(ctypes.get_errno())}")

    @property
    def others(self) -> list[int]:
        """The indexes of the other hosts."""
        return [host for host in range(len(self.members.seats)) if host != self.index]

    def attach(self, host: Host) -> None:
        """The ranks of this host become part of a job on all hosts."""
        self._library.numatp_ranks_hosts(host.handle, self.handle)

    def swap(self, host: Host, mine: bytes) -> list[bytes]:
        """What each host's leader brought, by host. Leaders only, and all of them."""
        sizes = self._swap(host, len(mine).to_bytes(8, "little"), [8] * len(self.members.seats))
        return self._swap(host, mine, [int.from_bytes(size, "little") for size in sizes])

    def _swap(self, host: Host, mine: bytes, sizes: list[int]) -> list[bytes]:
        if self._swapping:
            raise RankError("an exchange with the other hosts was interrupted")
        room = max(*sizes, 1)
        theirs = ctypes.create_string_buffer(room * len(sizes))
        self._swapping = True
        self._in_use.append((mine, theirs))
        while (status := self._library.numatp_hosts_swap(host.handle, mine, len(mine), theirs, room)) == native.PENDING:
            pass  # Python looks at signals in between
        self._swapping = False
        host.check(status)
        self._in_use.pop()
        ctypes.memmove(ctypes.byref(theirs, self.index * room), mine, len(mine))
        return [theirs.raw[i * room : i * room + size] for i, size in enumerate(sizes)]

    def quiet(self) -> None:
        """Nothing is sent or received any more: before MPI ends."""
        self._library.numatp_hosts_quiet(self.handle)


def _mpi(MPI: Any, communicator: Any) -> native.Mpi:
    """The functions of the library behind mpi4py by address, and its handles: ints in MPICH, pointers in Open MPI."""
    library = ctypes.CDLL(MPI.__file__)  # symbols are found in what it depends on, too

    def address(name: str) -> int | None:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value

    return native.Mpi(
        address("MPI_Isend"), address("MPI_Irecv"), address("MPI_Test"), address("MPI_Cancel"), MPI._sizeof(MPI.Request),
        MPI._handleof(communicator) & (1 << 64) - 1, MPI._handleof(MPI.BYTE) & (1 << 64) - 1,
    )  # fmt: skip
