"""The engine on a thread of its own, for callers on any thread. The caller's threads are never pinned and can be interrupted."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from numatp.engine.counts import Counts
from numatp.engine.job import Job
from numatp.engine.start import StartedRank, start_ranks
from numatp.errors import MachineError, NumatpError, RankError, UserError
from numatp.machine import limits, native

if TYPE_CHECKING:
    from numatp.engine.engine import Engine
    from numatp.engine.saved import SavedPrompts
    from numatp.engine.scheduler import Scheduler
    from numatp.engine.sequence import Sequence

T = TypeVar("T")
WRITTEN: Literal["written"] = "written"  # wakes the engine's thread: one more of its prompts is in a file
LOOK = 1.0  # seconds between two looks whether other hosts live, while there is nothing to do
PATIENCE = 3  # seconds for the Step that is under way when the model is closed; nobody wants what it computes


class Call:
    """Work for the engine's thread, done between Steps."""

    def __init__(self, work: Callable[[Any], Any]):
        self._work, self.result = work, Future[Any]()

    def run(self, engine: "Engine") -> None:
        try:
            self.result.set_result(self._work(engine))
        except BaseException as error:
            self.result.set_exception(error)
            if isinstance(error, RankError):
                raise

    def put(self, error: BaseException) -> None:
        self.result.set_exception(error)


class Service:
    """One rank of a job. Rank 0 takes requests; the others serve it until it closes."""

    WORKER = "numatp.engine.worker"  # the module that other local ranks run

    def __init__(self, job: Job, ranks: int | None, progress: Callable[[int, int], None] = lambda done, total: None):
        self.started: StartedRank = start_ranks(job, ranks, self.WORKER)
        self.counts = Counts()  # written by the engine's thread, read by any
        self._pid = os.getpid()
        self._inbox: SimpleQueue[Sequence | Call | Literal["written"] | None] = SimpleQueue()
        self._ready: Future[Engine] = Future()
        self._failed: BaseException | None = None
        self._ended: BaseException | None = None  # what a request gets that comes too late
        self._writer: ThreadPoolExecutor | None = None
        if job.prompt_cache_dir and self.rank == 0:
            self._writer = ThreadPoolExecutor(1, "numatp-prompts")
            self._writer.submit(int)  # it starts here, because threads that the engine's thread starts are bound as that is
        self._saved: SavedPrompts | None = None
        self._look_after = LOOK if self.started.world.hosts else None
        self._finishing = False  # all was computed, and what is known of it is written
        self._thread = Thread(target=self._run, args=(job, progress), name="numatp-engine", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            line = limits.describe(error) or str(error)
            self.started.world.abort(f"rank {self.rank}: {line}")
            raise MachineError(line) from error

    @property
    def rank(self) -> int:
        return self.started.world.rank

    def engine(self) -> "Engine":
        """The engine, once the model is loaded; what is on it is read, never called, from other threads."""
        return self._ready.result()

    def call(self, work: Callable[[Any], T]) -> T:
        """The result of work(engine), done on the engine's thread of rank 0; raises what it raises."""
        call = Call(work)
        self.submit(call)
        result: T = call.result.result()
        return result

    def submit(self, request: "Sequence | Call") -> None:
        """Sequences (engine/sequence.py) or other work, rank 0. RankError in a forked child, which has no engine."""
        if os.getpid() != self._pid:
            self.started.world.host.check(native.FORKED)
        self._inbox.put(request)
        if self._ended:
            self._refuse_waiting()

    def wait(self, look: float | None = 0.2) -> None:
        """Returns when the engine's thread has ended: on other ranks when rank 0 closes. Raises what ended it.

        look: seconds after which a signal is seen at the latest; None for a thread that gets none.
        """
        while self._thread.is_alive():
            self._thread.join(look)
        if self._failed:
            raise self._failed

    def close(self) -> None:
        """Ends the job: requests under way are cancelled. Safe to call twice, and in a forked child, where it does nothing."""
        if os.getpid() != self._pid:
            return
        self._inbox.put(None)
        self._thread.join(PATIENCE if self.rank == 0 else None)  # the others serve until rank 0 has closed
        if self._finishing:
            self._thread.join()
        if self._thread.is_alive():  # in a long Step, or in one that another rank does not finish because somebody has stopped it
            self.abort("closed in the middle of a Step")
            self._thread.join()
        if self.started.workers:
            self.started.workers.close()
        if self._writer:
            self._writer.shutdown()

    def abort(self, text: str) -> None:
        """Ends the job on every rank at once."""
        self.started.world.abort(text)

    # ------------------------------------------------------------ the engine's thread

    def _open_engine(self, job: Job, progress: Callable[[int, int], None]) -> "Engine":
        from numatp.engine.engine import Engine

        return Engine(job, self.started, progress)

    def _run(self, job: Job, progress: Callable[[int, int], None]) -> None:
        try:
            from numatp.engine.scheduler import Scheduler  # now, because a fork once we are ready must not meet a half-done import

            engine = self._open_engine(job, progress)
            try:
                if self._writer:
                    from numatp.engine.saved import SavedPrompts

                    self._saved = SavedPrompts(engine, self._writer, lambda: self._inbox.put(WRITTEN))
                    self._saved.restore()
                self._ready.set_result(engine)
                if self.rank:
                    engine.serve()
                else:
                    self._serve_requests(engine, Scheduler(engine, self.counts))
            finally:
                engine.close()
        except BaseException as error:
            line = limits.describe(error) or f"{type(error).__name__}: {error}"
            self._failed = error if isinstance(error, NumatpError) else RankError(line)
            self._failed.__cause__ = None if error is self._failed else error
            if not isinstance(error, RankError):
                what = str(self._failed)
                self.abort(what if isinstance(error, NumatpError) else f"rank {self.rank}: {what}")
            if not self._ready.done():
                self._ready.set_exception(self._failed)
        finally:
            self._ended = self._failed or UserError("the model was closed: load it again")
            self._refuse_waiting()

    def _serve_requests(self, engine: "Engine", scheduler: "Scheduler") -> None:
        closing = False
        try:
            while scheduler.busy or not closing:
                self.started.world.look()
                with contextlib.suppress(Empty):
                    while True:  # all that is there; waiting only when there is nothing else to do
                        idle = not scheduler.busy and not closing
                        if not idle and self._inbox.empty():
                            break
                        if idle and self._saved:
                            self._saved.save_next()
                        request = self._inbox.get(idle, self._look_after)
                        if request is None:
                            closing = True
                            scheduler.cancel()
                        elif request == WRITTEN:
                            continue
                        elif isinstance(request, Call):
                            request.run(engine)
                            self._step_done()
                        else:
                            scheduler.submit(request)
                if scheduler.busy:
                    self.counts.step_began = time.monotonic()
                    scheduler.step()
                    self.counts.steps += 1
                    self.counts.step_began = 0.0
                    self._step_done()
            if self._saved:
                self._finishing = True
                self._saved.finish()
        except BaseException as error:
            scheduler.fail(error)
            raise

    def _step_done(self) -> None:
        if self._saved:
            self._saved.step_done()

    def _refuse_waiting(self) -> None:
        assert self._ended
        with contextlib.suppress(Empty):
            while True:
                request = self._inbox.get_nowait()
                if request is not None and request != WRITTEN:
                    request.put(self._ended)
