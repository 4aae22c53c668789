"""All ranks of a job, on whichever hosts. A rank has three numbers, which are equal only as long as there is one host:

- its rank, among all of the job, host by host: who samples, who speaks, which result is whose;
- its seat, among the ranks of its host: its part of the window, its place on the nodes, its lanes;
- its share of the model, a Split (weights/splits.py), which follows from its rank.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numatp.errors import NumatpError
from numatp.machine import native
from numatp.ranks.host import Host, described, failure_of
from numatp.ranks.hosts import Hosts


@dataclass(frozen=True)
class World:
    """This process as rank `rank` of `size` ranks, which sits at seat `host.seat` of its host."""

    host: Host
    rank: int
    size: int
    hosts: Hosts | None = None  # None: all ranks are on this host

    @classmethod
    def of_one(cls, host: Host) -> "World":
        """All ranks are on this host: seats are ranks."""
        return cls(host, host.seat, host.seats)

    @classmethod
    def of_many(cls, host: Host, hosts: Hosts) -> "World":
        """Ranks of several hosts."""
        hosts.attach(host)
        return cls(host, hosts.members.first_rank(hosts.index) + host.seat, hosts.members.size, hosts)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank; values are small and JSON."""
        return self.of_all_hosts(self.host.gather(value))

    def of_all_hosts(self, mine: list[Any]) -> list[Any]:
        """What all ranks of this host know of each of them (JSON, of any size): of every rank, in rank order, on every rank."""
        if not self.hosts:
            return mine
        if not self.hosts.leads:
            return list(self.host.share(None))
        everybody = [json.loads(told) for told in self.hosts.swap(self.host, json.dumps(mine).encode())]
        return list(self.host.share([value for told in everybody for value in told]))

    def share(self, value: Any) -> Any:
        """Rank 0's value (JSON, of any size) on every rank."""
        if self.hosts and self.hosts.leads:
            value = json.loads(self.hosts.swap(self.host, json.dumps(value if self.rank == 0 else None).encode())[0])
        return self.host.share(value)

    def agree(self, failure: NumatpError | None) -> None:
        """Every rank brings what went wrong on it, if anything; then all of them raise that of the first rank that has one."""
        if not self.hosts:
            return self.host.agree(failure)
        everybody = self.gather(described(failure))
        for rank, other in enumerate(everybody):
            if other:
                kind, text = other
                shared = all(one == other for one in everybody)
                raise failure_of(kind, text if shared else f"{self.place_of(rank)}: {text}")

    def place_of(self, rank: int) -> str:
        """For a sentence: "rank 3", and of several hosts "rank 3 on host NAME"."""
        members = self.hosts.members if self.hosts else None
        return f"rank {rank} on host {members.names[members.host_of(rank)]}" if members else f"rank {rank}"

    def name_node(self, node: int) -> int | str:
        """One name for a node of this host on all ranks: its number, or of several hosts a text."""
        return f"{node} of host {self.hosts.members.names[self.hosts.index]}" if self.hosts else node

    def describe(self, describe: Callable[[int], str]) -> str:
        """The sentences of all hosts in one. describe: of the ranks of this host, by the number of the first."""
        if not self.hosts:
            return describe(0)
        members = self.hosts.members
        said = self.gather(describe(members.first_rank(self.hosts.index)))
        hosts = range(len(members.names))
        each = [f"host {members.names[host]}: {said[members.first_rank(host)]}" for host in hosts]
        return f"{len(each)} hosts; {'; '.join(each)}"

    def look(self) -> None:
        """RankError if the job has ended while this rank waits for work: of several hosts nothing else would tell it."""
        if self.hosts:
            self.host.look()

    def abort(self, text: str) -> None:
        """Ends the job on every rank."""
        self.host.abort(text)

    # ------------------------------------------------------------ what Steps take to other hosts and bring back

    def map_parts(self, num_bytes: Sequence[int]) -> list[np.ndarray]:
        """A new section of the window with one part per rank, uint8 (num_bytes[rank],): on rank 0's host those of all ranks, of
        other hosts' ranks what they return; elsewhere those of this host's seats. So a rank's own part is at its seat.
        """
        if not self.hosts or self.hosts.index == 0:
            return self.host.map_shared(list(num_bytes))
        mine = self.hosts.members.ranks_of(self.hosts.index)
        return self.host.map_shared([num_bytes[rank] for rank in mine])

    def told(self, memory: np.ndarray) -> list[native.Piece]:
        """What rank 0 wrote there, on every host."""
        if not self.hosts or not self.hosts.leads:
            return []
        at, size = memory.ctypes.data, memory.nbytes
        return [native.Piece(at, size, size, 0, host) for host in (self.hosts.others if self.rank == 0 else [0])]

    def returned(self, parts: Sequence[np.ndarray], row_bytes: int = 0, rows: int = 0) -> list[native.Piece]:
        """What ranks of other hosts wrote into their parts, at rank 0: all of it, or as many rows as stand at address `rows`."""
        if not self.hosts or not self.hosts.leads:
            return []
        members, index = self.hosts.members, self.hosts.index
        whose = [(0, part) for part in parts] if index else [
            (members.host_of(rank), parts[rank]) for rank in range(self.host.seats, self.size)
        ]  # fmt: skip
        return [
            native.Piece(part.ctypes.data, row_bytes or part.nbytes, row_bytes or part.nbytes, rows, host) for host, part in whose
        ]  # fmt: skip

    def returned_columns(self, matrix: np.ndarray, columns: Sequence[range], rows: int) -> list[native.Piece]:
        """What ranks of other hosts wrote into their columns of a matrix, at rank 0. columns: per rank, each after the other.
        rows: the address of their number."""
        if not self.hosts or not self.hosts.leads:
            return []
        members = self.hosts.members
        pieces = []
        for host in self.hosts.others if self.rank == 0 else [self.hosts.index]:
            ranks = members.ranks_of(host)
            first, last = columns[ranks[0]].start, columns[ranks[-1]].stop
            part = matrix[:, first:last]
            pieces.append(
                native.Piece(
                    part.ctypes.data, part.shape[1] * matrix.itemsize, matrix.strides[0], rows, host if self.rank == 0 else 0
                )
            )
        return pieces
