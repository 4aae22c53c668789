"""What may fail on one rank alone."""

from collections.abc import Callable
from typing import TypeVar

from numatp.errors import MachineError, NumatpError, RankError
from numatp.machine import limits
from numatp.ranks.world import World

T = TypeVar("T")


def agree(world: World, action: Callable[[], T]) -> T:
    """This rank's action(), in which no rank waits for another. What fails on one rank is raised on all."""
    failure: NumatpError | None = None
    results = list[T]()
    try:
        results.append(action())
    except RankError:
        raise
    except NumatpError as error:
        failure = error
    except (MemoryError, OSError, RuntimeError) as error:
        line = limits.describe(error)
        if not line:
            raise
        failure = MachineError(f"rank {world.rank}: {line}")
    world.agree(failure)
    return results[0]
