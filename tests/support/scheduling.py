"""An engine in this process whose Steps a test makes one by one."""

from contextlib import contextmanager

from numatp.engine.counts import Counts
from numatp.engine.job import Job
from numatp.engine.sampling import SamplingParams
from numatp.engine.sequence import Continuation
from numatp.engine.service import Service
from numatp.engine.token import Finish, Token


class Play:
    """A scheduler of its own on a service's engine; `asked` are the requests, in order, with what came of each."""

    def __init__(self, engine, counts):
        from numatp.engine.scheduler import Scheduler

        self.engine, self.counts, self.asked = engine, counts, []
        self.scheduler = Scheduler(engine, counts)

    def ask(self, prompt, max_tokens=8, progress=False, salt="", **params):
        came = []
        params = SamplingParams(**{"temperature": 0, "ignore_eos": True} | params, max_tokens=max_tokens)
        sequence = Continuation(list(prompt), came.append, params, frozenset(), progress=progress, salt=salt)
        self.asked.append((sequence, came))
        self.scheduler.submit(sequence)
        return sequence, came

    def finish(self, most=10_000):
        """Steps until nobody waits or runs."""
        while self.scheduler.busy:
            self.scheduler.step()
            most -= 1
            assert most, "no end"

    @property
    def texts(self):
        """The tokens of each; what went wrong is raised."""
        for _, came in self.asked:
            for item in came:
                if isinstance(item, BaseException):
                    raise item
        return [tokens_of(came) for _, came in self.asked]


def tokens_of(came):
    return [item.id for item in came if isinstance(item, Token)]


def finish_of(came):
    assert sum(isinstance(item, Finish) for item in came) == 1 and isinstance(came[-1], Finish)
    return came[-1]


@contextmanager
def opened(path, ranks=1, **job):
    """play(work): the result of work(Play) on the engine's thread, after which every block must be free or known to nobody."""
    service = Service(Job(model=str(path), **job), ranks)

    def play(work):
        def on_engine(engine):
            result = work(Play(engine, Counts()))
            for pool in range(len(engine.blocks.pools)):
                assert engine.blocks.count(pool)[0] == 0, "somebody still holds a block"
            return result

        return service.call(on_engine)

    try:
        play.engine = service.engine()
        yield play
    finally:
        service.close()
