"""A request's body: bounded while it is read, and parsed into structs that bound every number and list."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from numatp.server.guard import Receive
from numatp.server.refusals import Refused

MOST_BYTES = 32 << 20
MOST_TOGETHER = 256 << 20  # of all requests that are under way
MOST_DEPTH = 64  # of what is handed on as it came: schemas, arguments of a template
SECONDS = 60.0  # for a client to send it
LARGE = 1 << 16  # bytes of a body that is parsed in a thread, so that others do not wait for it

MISSING = re.compile("missing required field `(.*)`")
T = TypeVar("T")


class HungUp(Exception):
    """The client has gone."""


class Room:
    """For the bodies of all requests that are under way."""

    def __init__(self) -> None:
        self.taken = 0  # bytes

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """take(bytes) for one request, given back at its end; Refused where there is no room for so many more."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.taken + size > MOST_TOGETHER:
                raise Refused(429, "the bodies of other requests leave no room for this one: try again later", retry_after=10)
            mine += size
            self.taken += size

        try:
            yield take
        finally:
            self.taken -= mine


async def read_body(receive: Receive, headers: list[tuple[bytes, bytes]], take: Callable[[int], None]) -> bytes:
    """Refused if it is too large or too slow, or by take(bytes); HungUp if the client goes."""
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise Refused(400, f"a body of content-encoding {value.decode('latin-1')[:20]!r} is not read: send it as it is")
    try:
        async with asyncio.timeout(SECONDS):
            return await _read(receive, take)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {SECONDS:.0f} s") from None


async def _read(receive: Receive, take: Callable[[int], None]) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        part = message.get("body", b"")
        size += len(part)
        if size <= MOST_BYTES:
            take(len(part))
            parts.append(part)
        else:  # what comes is forgotten, for a while: who is still sending would not see why it is refused
            parts.clear()
        if size > 2 * MOST_BYTES or (size > MOST_BYTES and not message.get("more_body")):
            raise Refused(413, f"the body is larger than {MOST_BYTES >> 20} MiB")
        if not message.get("more_body"):
            return b"".join(parts)


def parse(body: bytes, kind: type[T]) -> T:
    """Refused, with the field's name, for what is no JSON or not of that kind."""
    try:
        found = msgspec.json.decode(body, type=kind)
        deep = not _within(msgspec.to_builtins(found), MOST_DEPTH)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        missing = MISSING.search(text)
        param = f"{place.rstrip('`')}.{missing[1]}".lstrip(".") if missing else place.rstrip("`").lstrip(".") or None
        raise Refused(400, f"{param}: {text}" if param else f"the body: {text}", param=param) from None
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8 text") from None
    except RecursionError:
        raise Refused(400, f"the body is nested deeper than {MOST_DEPTH} levels") from None
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from None
    if deep:
        raise Refused(400, f"the body is nested deeper than {MOST_DEPTH} levels")
    return found


def _within(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_within(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_within(item, depth - 1) for item in value)
    return True
