"""A user's script, the same on every rank: python run_llm.py MODEL CASE [RANKS]. Prints one JSON line per rank."""

import json
import logging
import os
import sys

import numpy as np

from numatp import LLM, RankError, SamplingParams, UserError

GREEDY = SamplingParams(temperature=0, max_tokens=12)


class UsersNumba:
    """What the script does with Numba itself, and how it has set it."""

    def __init__(self):
        import numba

        @numba.njit(parallel=True)
        def add(values):
            total = 0.0
            for i in numba.prange(len(values)):
                total += values[i]
            return total

        self.numba, self.add, self.ones = numba, add, np.ones(1000)
        numba.set_num_threads(1)
        numba.config.CACHE_DIR = "/of/the/user"
        self.before = self.settings()
        add(self.ones)

    def settings(self):
        config = self.numba.config
        return self.numba.get_num_threads(), config.CACHE_DIR, config.NUMBA_NUM_THREADS, config.CPU_NAME, config.CPU_FEATURES

    def afterwards(self):
        return {"settings": self.settings() == self.before, "sum": self.add(self.ones)}


def everything(llm):
    said = {
        "text": llm.generate("The capital of France is", GREEDY).text,
        "several": [output.text for output in llm.generate(["One, two,", "The sun is"], GREEDY)],
        "streamed": "".join(llm.stream("The capital of France is", GREEDY)),
        "chat": llm.chat([{"role": "user", "content": "Hello"}], GREEDY).text,
        "logprobs": llm.score("The capital of France is Paris.").logprobs,
        "ranks": llm.place.ranks,
    }
    try:
        llm.generate("")
    except UserError as error:
        said["refused"] = str(error)
    return said


numba = everything  # beside a script's own


def differing(llm):
    """Calls that differ from rank to rank must end, on all of them, in words."""
    try:
        if llm.rank:
            llm.score("One two three")
        else:
            llm.generate("One two three", GREEDY)
    except RankError as error:
        return {"refused": str(error)}


def failing(llm):
    """A user's own error on one rank, while the others go on to the next call."""
    if llm.rank:
        raise ValueError("my own mistake")
    llm.generate("One two three", GREEDY)


def short(llm):
    return {"text": llm.generate("The capital of France is", GREEDY).text}


def main(model, case, ranks="auto"):
    before = os.sched_getaffinity(0)
    users = UsersNumba() if case == "numba" else None
    with LLM(model, ranks=ranks if ranks == "auto" else int(ranks), ctx=1024) as llm:
        said = globals()[case](llm)
    said["affinity"] = os.sched_getaffinity(0) == before
    print(json.dumps(said | users.afterwards() if users else said), flush=True)


if __name__ == "__main__":
    if os.environ.get("SHOW_LOG"):
        logging.basicConfig(level=logging.INFO)
    main(*sys.argv[1:])
