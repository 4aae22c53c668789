"""From the engine's thread to the event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from numatp.engine.token import Event

Take = Callable[[Event], None]


class Mailbox:
    """Of all requests. Waking the event loop takes longer than all else that is done for a token, so it is woken once for all that
    has come since it looked last: mostly the tokens of one Step."""

    def __init__(self) -> None:
        self._items: deque[tuple[Take, Event]] = deque()
        self._rung = False  # the loop has been woken, and has not looked yet

    def receiver(self, take: Take) -> Callable[[Event], None]:
        """What any thread may call; take() then gets the same, in the same order, on the event loop that runs now."""
        loop = asyncio.get_running_loop()

        def put(item: Event) -> None:
            self._items.append((take, item))
            if not self._rung:
                self._rung = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._look)

        return put

    def _look(self) -> None:
        self._rung = False  # before it looks: what comes from now on wakes it again
        while self._items:
            take, item = self._items.popleft()
            take(item)
