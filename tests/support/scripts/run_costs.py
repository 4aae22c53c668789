"""What a rank costs: python run_costs.py MODEL CASE. One JSON line per rank."""

import ctypes
import json
import mmap
import os
import re
import sys
from pathlib import Path


def read_bytes():
    """Bytes that this process has asked the kernel for."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def engine_of(model):
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    started = start_ranks(Job(model=model), None)
    from numatp.engine.engine import Engine

    before = read_bytes()
    engine = Engine(Job(model=model, context=256), started)
    return engine, started, read_bytes() - before


def memory(model):
    """Once it has decoded a little: what was read, what is held, and that MPI has ended before the first Step."""
    engine, started, read = engine_of(model)
    layout = engine.loaded.layout
    said = {"read": read, "weights": layout.weight_bytes, "cache": layout.cache.num_bytes, "mpi_ended": False}
    if started.mpi:
        from mpi4py import MPI

        said["mpi_ended"] = MPI.Is_finalized()
    run(engine, 8)
    said["peak"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return said


def arenas(model):
    """How the kernel holds the weights and the cache, and which share of the file's pages is left in memory."""
    engine, started, _ = engine_of(model)
    said = {"notes": started.notes, "pages": engine.pages_line}
    for name, address in (("weights", engine.loaded.weights_at), ("caches", engine.loaded.cache_at)):
        assert address % (2 << 20) == 0
        mapping = re.search(rf"^{address:x}-.*?^VmFlags:([^\n]*)", Path("/proc/self/smaps").read_text(), re.MULTILINE | re.DOTALL)
        said[name] = {
            "huge": "hg" in mapping[1].split(),
            "policy": re.search(rf"^{address:x} (\S+)", Path("/proc/self/numa_maps").read_text(), re.MULTILINE)[1],
        }
    return said | {"cached": cached(model)}


def arenas_where_memory_is_short(model):
    from numatp.machine import topology

    topology.unused_bytes = lambda node: 0
    return arenas(model)


def cached(path):
    """Share of a file's pages that are in the page cache."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start, pages = ctypes.c_char.from_buffer(mapped), -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), found) == 0
        del start
    return sum(byte & 1 for byte in found) / pages


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
    from numatp.engine.sampling import SamplingParams
    from numatp.engine.scheduler import Scheduler
    from numatp.engine.sequence import Continuation

    if engine.world.rank:
        engine.serve()
        return
    scheduler = Scheduler(engine)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    scheduler.submit(Continuation([1, 2, 3], lambda item: None, params, frozenset()))
    while scheduler.busy:
        scheduler.step()
    if os.environ.get("OMPI_COMM_WORLD_SIZE"):
        engine.team.stop()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[2]](sys.argv[1])), flush=True)
