"""A command's LLM: loaded with a progress bar, closed whatever happens."""

import contextlib
from collections.abc import Callable, Iterator

from numatp.cli.options import show_log
from numatp.cli.progress import Progress
from numatp.engine.job import Job
from numatp.errors import NumatpError
from numatp.llm import LLM


def run_session(job: Job, ranks: int | None, work: Callable[[LLM], int]) -> int:
    """work(llm) on rank 0; other ranks that a launcher started serve it. Returns the exit status."""
    show_log()
    with Progress("load") as progress:
        llm = LLM(job, ranks or "auto", others="serve", progress=progress.update)
    if llm.rank:
        return llm.serve()
    with ended(llm.abort), llm:
        return work(llm)


@contextlib.contextmanager
def ended(abort: Callable[[str], None]) -> Iterator[None]:
    """Whatever goes wrong here ends the job on every rank."""
    try:
        yield
    except BaseException as error:
        abort(str(error) if isinstance(error, NumatpError) else type(error).__name__)
        raise
