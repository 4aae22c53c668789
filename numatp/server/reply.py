"""How an answer leaves: a JSON body, or a stream of events with signs of life where nothing is said."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from numatp.server.guard import Send

if TYPE_CHECKING:
    from numatp.server.generation import Generation

encode = msgspec.json.encode
PING = b": ping\n\n"  # a comment, which every reader of server-sent events passes over


class Reply(Protocol):
    def send(self, send: Send) -> Awaitable[None]:
        """All of it, to the client."""


class Answer(Protocol):
    """What a route makes of a generation."""

    async def whole(self, generation: "Generation") -> Any:
        """What becomes JSON."""

    def events(self, generation: "Generation") -> AsyncIterator[bytes]:
        """Server-sent events, one or several at a time, or none."""


class Body:
    """A whole answer."""

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"):
        self._body = content if isinstance(content, bytes) else encode(content)
        self._status = status
        self._headers = {"content-type": kind, "content-length": str(len(self._body)), **(headers or {})}

    async def send(self, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


class Events:
    """Server-sent events, sent as they come: those that come together in one piece."""

    HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]  # noqa: RUF012

    def __init__(self, events: AsyncIterator[bytes], cancel: Callable[[], None], silence: float, ping: bytes = PING):
        """cancel(): called at the end, also where the events were never begun. silence: seconds until `ping`, 0: never."""
        self._events, self._cancel, self._silence, self._ping = events, cancel, silence, ping
        self._last = 0.0

    async def send(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        pinging = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.HEADERS})
            await send({"type": "http.response.body", "body": b"", "more_body": True})  # the headers leave now
            pinging = asyncio.create_task(self._send_pings(send)) if self._silence else None
            async for events in self._events:
                if events:
                    self._last = loop.time()
                    await send({"type": "http.response.body", "body": events, "more_body": True})
        finally:
            if pinging:
                pinging.cancel()
            self._cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send_pings(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._last
            if silent >= self._silence:
                self._last = loop.time()
                await send({"type": "http.response.body", "body": self._ping, "more_body": True})
            await asyncio.sleep(max(self._last + self._silence - loop.time(), 0.01))


async def reply(answer: Answer, generation: "Generation", streamed: bool, silence: float, ping: bytes = PING) -> Reply:
    """What a client gets of a generation, which is cancelled at the end, however that comes. silence, ping: as Events has them."""
    if streamed:
        return Events(answer.events(generation), generation.cancel, silence, ping)
    try:
        return Body(await answer.whole(generation))
    finally:
        generation.cancel()
