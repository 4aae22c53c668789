"""From a request to its reply: the life that all routes have in common."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request

from numatp.errors import UserError
from numatp.server.body import LARGE, HungUp, parse, read_body
from numatp.server.guard import Receive, Scope, Send, is_anthropic
from numatp.server.refusals import Refused, anthropic_error, of_user_error, openai_error
from numatp.server.reply import Body, Reply
from numatp.server.sampling import Sampling, check_supported
from numatp.server.state import State

log = logging.getLogger("numatp.server")
T = TypeVar("T")


class Call:
    """One request that has come in whole."""

    def __init__(self, state: State, request: Request, body: bytes):
        self.state, self.request, self._body = state, request, body

    def salt(self, asked: Sampling | None = None) -> str:
        """Requests with the same one share what the cache has of their prompts. asked: what a request may say of it."""
        said = asked.cache_salt if asked else None
        if asked and asked.cache_prompt is False:
            said = secrets.token_hex()  # nobody else has it
        return f"{self.request.scope.get('numatp.key', '')} {said or ''}"

    async def parse(self, kind: type[T]) -> T:
        """The body as a struct. Refused if it is none."""
        if len(self._body) > LARGE:
            return await self.state.in_thread(_parse, self._body, kind)
        return _parse(self._body, kind)


def _parse(body: bytes, kind: type[T]) -> T:
    found = parse(body, kind)
    check_supported(body, kind)
    return found


Handler = Callable[[Call], Awaitable[Reply]]


class Endpoint:
    """An ASGI application for one route. A client that hangs up ends the work, whatever phase it is in."""

    def __init__(self, state: State, method: str, handler: Handler):
        self._state, self._method, self._handler = state, method, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state.answering(), self._state.bodies.share() as take:
            try:
                if scope["method"] not in (self._method, "HEAD" if self._method == "GET" else self._method):
                    raise Refused(405, f"{scope['path']} is asked with {self._method}")
                body = await read_body(receive, scope["headers"], take)
                await self._until_hung_up(self._answer(scope, body, send), receive)
            except HungUp:
                log.debug("a client of %r has hung up", scope["path"])
            except Refused as refused:  # a body was not read to its end: the connection ends
                await refusal(scope["path"], refused, {"connection": "close"}).send(send)

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            reply = await self._handler(Call(self._state, Request(scope), body))
        except Refused as refused:
            reply = refusal(scope["path"], refused)
        except UserError as error:
            reply = refusal(scope["path"], of_user_error(error, self._state.llm.model))
        except Exception as error:
            # A mistake of ours: nothing of the request is logged but where it went.
            log.error("%r: %s in %s", scope["path"], type(error).__name__, _place(error))
            reply = refusal(scope["path"], Refused(500, "the server made a mistake: its log says where"))
        await reply.send(send)

    async def _until_hung_up(self, work: Awaitable[None], receive: Receive) -> None:
        answering: asyncio.Future[None] = asyncio.ensure_future(work)
        watching = asyncio.create_task(_hung_up(receive))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise HungUp
            await answering
        finally:
            answering.cancel()
            watching.cancel()
            await asyncio.wait({answering, watching})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def refusal(path: str, refused: Refused, headers: dict[str, str] | None = None) -> Body:
    form = anthropic_error if is_anthropic(path) else openai_error
    return Body(form(refused), refused.status, refused.headers | (headers or {}))


def _place(error: BaseException) -> str:
    trace: Any = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
