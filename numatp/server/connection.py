"""Connections: bounded in number, and closed where no request comes, or nonsense."""

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1024  # connections at the same time
OTHERS = 512  # files that may be open beside them
SECONDS = 30.0  # for a client to send the head of a request, once it has connected or begun


def room_for_connections() -> int:
    """How many there may be: MOST, where the process may open so many files. Sees to it that it may, if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + OTHERS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(min(soft - OTHERS, MOST), 1)


class Connection(H11Protocol):
    """uvicorn's, which waits for ever for the first request and for the rest of one that has begun."""

    def __init__(self, *arguments: Any, most: int, waiting: dict["Connection", None], **more: Any):
        """most: at the same time. waiting: those on which a request is still to come, the longest wait first."""
        super().__init__(*arguments, **more)
        self._most, self._waiting = most, waiting
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if len(self.connections) > self._most:
            next(iter(self._waiting))._make_room()  # this one, if all others are being answered

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP; behind an answer that has begun there is nothing to say. Who was to answer finds the client gone."""
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        self._forget()
        super().on_response_complete()
        self._waiting[self] = None  # as long as uvicorn lets it idle
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """At once: it is lost a little later."""
        self._forget()
        self.connections.discard(self)
        self.transport.abort()

    def _look(self) -> None:
        """Whether a request is still to come."""
        if self.cycle and not self.cycle.response_complete:
            self._forget()
        elif not self._patience and not self.timeout_keep_alive_task:
            self._waiting[self] = None
            self._patience = self.loop.call_later(SECONDS, self.timeout_keep_alive_handler)

    def _forget(self) -> None:
        self._waiting.pop(self, None)
        if self._patience:
            self._patience.cancel()
            self._patience = None
