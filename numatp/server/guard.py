"""Who may ask at all: one layer in front of every route. It decides by the request as it came, before any route is looked up."""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from numatp.server.refusals import Refused, anthropic_error, openai_error
from numatp.server.settings import Settings, is_address, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/health"  # the one path that needs no key: whoever restarts a dead server has none
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
HEADERS = [
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"), (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, settings: Settings):
        self._app, self._settings = app, settings
        self._digests = [_digest(key.encode()) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # uvicorn is told to serve nothing else
        refused = self._refusal(scope["path"], scope["headers"])
        if refused:
            await _answer(scope["path"], refused, send)
            return
        if len(self._digests) > 1:
            scope["numatp.key"] = self._key(scope["headers"])  # users with keys of their own share no prompts

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _refusal(self, path: str, headers: list[tuple[bytes, bytes]]) -> Refused | None:
        hosts = [value for name, value in headers if name == b"host"]
        host = HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if not host or not self._is_ours(host[1].strip("[]").lower()):
            return Refused(403, "this server is not called by that name; --allowed-host NAME lets it answer to one")
        for name, value in headers:
            # A page of somebody else in the browser of somebody who may: it could not read the answer, but it could ask.
            if name == b"origin" and value.decode("latin-1").partition("://")[2].lower() != host[0].lower():
                return Refused(403, "requests from pages of other servers are refused")
        if path != OPEN and self._digests and not self._key(headers):
            return Refused(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        return None

    def _is_ours(self, host: str) -> bool:
        """A name that we do not know may be one that somebody points at us (DNS rebinding); a number cannot."""
        known = is_loopback(host) or host in (self._settings.host.lower(), *map(str.lower, self._settings.allowed_hosts))
        return known or (not self._settings.loopback and is_address(host))

    def _key(self, headers: list[tuple[bytes, bytes]]) -> str:
        """A digest of the key that a request has, as hexadecimal digits; "" if it has none of ours. Always in the same time."""
        found = ""
        for key in _keys(headers):
            for digest in self._digests:
                if hmac.compare_digest(digest, _digest(key)):
                    found = digest.hex()
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _keys(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    found = []
    for name, value in headers:
        if name == b"x-api-key":
            found.append(value)
        elif name == b"authorization":
            kind, _, rest = value.partition(b" ")
            if kind.lower() == b"bearer":
                found.append(rest.strip())
            elif kind.lower() == b"basic":
                try:
                    found.append(base64.b64decode(rest.strip(), validate=True).partition(b":")[2])
                except binascii.Error:
                    continue
    return found


async def _answer(path: str, refused: Refused, send: Send) -> None:
    form = anthropic_error if is_anthropic(path) else openai_error
    body = json.dumps(form(refused)).encode()
    headers = [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_anthropic(path: str) -> bool:
    return path.removeprefix("/v1").startswith("/messages")
