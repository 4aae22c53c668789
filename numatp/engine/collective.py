"""Calls that every rank of a launcher's script makes, and that rank 0 answers for all."""

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from numatp.errors import NumatpError, RankError, UserError

if TYPE_CHECKING:
    from numatp.ranks.world import World  # loads numpy

T = TypeVar("T")


class Collective:
    """world: None where one process alone makes the calls."""

    def __init__(self, world: "World | None"):
        self._world, self._turn = world, Lock()

    def __bool__(self) -> bool:
        return self._world is not None

    def __call__(
        self, call: str, work: Callable[[], T], to_json: Callable[[T], Any] = lambda result: result,
        from_json: Callable[[Any], T] = lambda told: told,
    ) -> T:  # fmt: skip
        """work(), which rank 0 alone does: all ranks get its result, or its error. call: what all ranks must be calling."""
        if self._world is None:
            return work()
        world = self._world
        with self._turn:
            calls = world.gather(call)
            if len(set(calls)) > 1:
                said = ", ".join(f"rank {rank}: {other}" for rank, other in enumerate(calls))
                raise RankError(f"under mpirun every rank must make the same calls, but they called {said}")
            error: NumatpError | None = None
            told: Any = None
            if world.rank == 0:
                try:
                    told = to_json(work())
                except RankError:
                    raise
                except NumatpError as failure:
                    error = failure
            failed, told = world.share([[type(error).__name__, str(error)] if error else None, told])
            if error:
                raise error
            if failed:
                raise (UserError if failed[0] == "UserError" else NumatpError)(failed[1])
            return from_json(told)
