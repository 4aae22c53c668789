"""What a rank costs: python run_costs.py MODEL CASE. One JSON line per rank."""

import json
import os
import sys
from pathlib import Path


def read_bytes():
    """Bytes that this process has asked the kernel for."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def engine_of(model):
    from numatp.engine.job import Job
    from numatp.engine.start import start

    started = start(Job(model=model), None)
    from numatp.engine.engine import Engine

    before = read_bytes()
    engine = Engine(Job(model=model, context=256), started)
    return engine, started, read_bytes() - before


def memory(model):
    """Once it has decoded a little: what was read, what is held, and that MPI has ended before the first Step."""
    engine, started, read = engine_of(model)
    said = {"read": read, "weights": engine.weight_bytes, "cache": engine.cache.num_bytes, "mpi_ended": False}
    if started.mpi:
        from mpi4py import MPI

        said["mpi_ended"] = MPI.Is_finalized()
    run(engine, 8)
    said["peak"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return said


def calls(model):
    """Python and C functions called on the engine's thread for one more token."""
    engine, _, _ = engine_of(model)
    counts = []
    for tokens in (20, 20, 40):
        count = 0

        def look(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(look)
        run(engine, tokens)
        sys.setprofile(None)
        counts.append(count)
    return {"calls": (counts[2] - counts[1]) / 20}


def run(engine, tokens):
    from numatp.engine.requests import Request, Scheduler
    from numatp.engine.sampling import SamplingParams

    if engine.comm.rank:
        engine.serve()
        return
    scheduler = Scheduler(engine)
    scheduler.submit(Request([1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True), frozenset(), lambda item: None))
    while scheduler.busy:
        scheduler.step()
    if os.environ.get("OMPI_COMM_WORLD_SIZE"):
        engine.team.stop()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[2]](sys.argv[1])), flush=True)
