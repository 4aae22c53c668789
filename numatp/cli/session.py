"""A command's LLM: loaded with a progress bar, closed whatever happens."""

import contextlib
from collections.abc import Callable, Iterator

from numatp.cli.options import show_log
from numatp.cli.progress import Progress
from numatp.engine.job import Job
from numatp.engine.service import Service
from numatp.errors import NumatpError
from numatp.llm import LLM


def run_session(job: Job, ranks: int | None, work: Callable[[LLM], int]) -> int:
    """work(llm) on rank 0; other ranks that a launcher started serve it. Returns the exit status."""
    with Progress("load") as progress:
        service = Service(job, ranks, progress.update)
        if service.rank:
            service.wait()
            return 0
        show_log()
        with ended(service):
            llm = LLM.over(job, service)
    with ended(service), llm:
        return work(llm)


@contextlib.contextmanager
def ended(service: Service) -> Iterator[None]:
    """Whatever goes wrong here ends the job on every rank."""
    try:
        yield
    except BaseException as error:
        service.abort(str(error) if isinstance(error, NumatpError) else type(error).__name__)
        raise
