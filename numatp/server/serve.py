"""The server's life: it answers while the model loads, until it is asked to stop or the engine ends."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from numatp.errors import RankError, UserError
from numatp.llm import LLM
from numatp.server.app import make_app
from numatp.server.connection import Connection, room_for_connections
from numatp.server.settings import Settings
from numatp.server.state import State

log = logging.getLogger("numatp")
LAST_WORDS = 2.0  # seconds for streams to say why they end
IDLE = 75  # seconds that a connection may be idle: longer than a proxy's 60, which then is the one to close it


class Server(uvicorn.Server):
    """uvicorn's, without its ten looks a second at what it is to do next, and with signals of ours."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[int], None]):
        super().__init__(config)
        self.finished = asyncio.Event()
        self._stop = stop

    async def main_loop(self) -> None:
        await self.finished.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop(sig)


def listen(settings: Settings) -> socket.socket:
    """UserError if the port, or the file, cannot be had."""
    if settings.is_socket:
        return _listen_at(settings.host)
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        made = socket.create_server(address[:2], family=family, backlog=512)
        # Connections inherit it. Else what is written in two pieces waits 40 ms for the other side to acknowledge the first.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except UnicodeError:  # of a name whose parts are empty or longer than 63 letters
        raise UserError(f"--host {settings.host}: neither an address, nor a name, nor a path that ends in .sock") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host {settings.host} --port {settings.port}: cannot listen there: {reason}") from None
    made.setblocking(False)
    return made


def _listen_at(path: str) -> socket.socket:
    """A unix socket; one that a server has left when it was killed makes room."""
    made = socket.socket(socket.AF_UNIX)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and not _is_answered(path):
            os.unlink(path)
        made.bind(path)
        made.listen(512)
    except OSError as error:
        made.close()
        raise UserError(f"--host {path}: cannot listen there: {error.strerror or error}") from None
    made.setblocking(False)
    return made


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(path) != errno.ECONNREFUSED


def serve(llm: LLM, settings: Settings, places: int, loaded: Callable[[], None]) -> int:
    """Until it is stopped; an exit status. llm: made with wait=False. loaded(): called when it is there.

    Raises what ended the engine.
    """
    return asyncio.run(Life(llm, settings, places, loaded).run())


def _address(listening: socket.socket) -> str:
    found = listening.getsockname()
    if isinstance(found, str):
        return f"unix:{found}"
    host, port = found[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Life:
    def __init__(self, llm: LLM, settings: Settings, places: int, loaded: Callable[[], None]):
        self._llm, self._settings, self._loaded = llm, settings, loaded
        self.state = State(llm, settings, places)
        self._error: BaseException | None = None
        self._signals = 0

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        listening = listen(self._settings)
        connection: Any = partial(Connection, most=room_for_connections(), waiting={})
        config = uvicorn.Config(
            make_app(self.state), http=connection, ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
            server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=IDLE, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = Server(config, self._signalled)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of everybody who speaks no HTTP
        log.info(f"{_address(listening)}: answers 503 until the model is loaded")
        engine = self._loop.run_in_executor(None, self._run_engine)
        watching = self._watch_ranks()
        try:
            await self._server.serve([listening])
        finally:
            for pidfd in watching:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
            if self._settings.is_socket:
                with contextlib.suppress(OSError):
                    os.unlink(self._settings.host)
            await asyncio.to_thread(self._llm.close)
            with contextlib.suppress(Exception):
                await engine
        if self._error:
            raise self._error
        return 0

    # ------------------------------------------------------------ the engine, from a thread of its own

    def _run_engine(self) -> None:
        try:
            self._llm.open()
            self._loop.call_soon_threadsafe(self._ready)
            self._llm.wait()
            error: BaseException | None = None
        except BaseException as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, error)

    def _ready(self) -> None:
        self._loaded()
        if self.state.phase == "loading":
            self.state.phase = "ready"
            log.info(f"{self.state.name}: ready for {self.state.places} requests at a time")

    def _ended(self, error: BaseException | None) -> None:
        """The engine has: every stream says so, then the process ends."""
        self._error = self._error or error
        if self.state.phase != "dead" and not self._server.finished.is_set():
            self.state.phase = "dead"
            self._finish_when_quiet(LAST_WORDS)

    def _watch_ranks(self) -> list[int]:
        """The kernel says when the process of another rank ends, also while there is nothing to compute."""
        found = []
        for rank, pid in enumerate(self._llm.pids):
            if rank:
                with contextlib.suppress(OSError):  # no such call, or the process has gone: the next Step says so
                    found.append(os.pidfd_open(pid))
                    self._loop.add_reader(found[-1], self._rank_died, rank, pid, found[-1])
        return found

    def _rank_died(self, rank: int, pid: int, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        if not self._server.finished.is_set():
            text = f"rank {rank} (process {pid}) died"
            self._error = self._error or RankError(text)
            self._llm.abort(text)
            self._loop.run_in_executor(None, self._llm.close)  # wakes the engine's thread, if it has nothing to do

    # ------------------------------------------------------------ the end

    def _signalled(self, number: int) -> None:
        """In a signal handler, on this thread: the first asks to stop, the second does."""
        self._signals += 1
        if self._signals > 1 or self.state.phase == "loading":
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self.state.phase == "ready":
            self.state.phase = "draining"
            if self.state.responses:
                log.info(f"stopping: {self.state.responses} requests are being answered; a second signal ends them")
            self._finish_when_quiet(self._settings.shutdown_timeout)

    def _finish_when_quiet(self, patience: float) -> None:
        self._finishing = self._loop.create_task(self._finish(patience))

    async def _finish(self, patience: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.state.quiet.wait()
        self._server.finished.set()
