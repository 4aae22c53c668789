"""All ranks of a job, on whichever hosts. A rank has three numbers, which are equal only as long as there is one host:

- its rank, among all of the job: who samples, who speaks, which result is whose;
- its seat, among the ranks of its host: its part of the window, its place on the nodes, its lanes;
- its share of the model, a Split (weights/splits.py), which follows from its rank.
"""

from dataclasses import dataclass
from typing import Any

from numatp.errors import NumatpError
from numatp.ranks.host import Host


@dataclass(frozen=True)
class World:
    """This process as rank `rank` of `size` ranks, which sits at seat `host.seat` of its host."""

    host: Host
    hosts: int
    rank: int
    size: int

    def __post_init__(self) -> None:
        # What follows passes messages through the window of one host; ranks/mpi.py refuses more in one line.
        assert self.hosts == 1 and self.size == self.host.seats

    @classmethod
    def of_one(cls, host: Host) -> "World":
        """All ranks are on this host: seats are ranks."""
        return cls(host, 1, host.seat, host.seats)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank; values are small and JSON."""
        return self.host.gather(value)

    def share(self, value: Any) -> Any:
        """Rank 0's value (JSON, of any size) on every rank."""
        return self.host.share(value)

    def agree(self, failure: NumatpError | None) -> None:
        """Every rank brings what went wrong on it, if anything; then all of them raise that of the first rank that has one."""
        self.host.agree(failure)

    def abort(self, text: str) -> None:
        """Ends the job on every rank."""
        self.host.abort(text)
