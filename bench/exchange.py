"""The exchange between ranks beside mpi4py's Allreduce of the same vectors, in turns: `mpirun -np 2 python bench/exchange.py`

Both add float32 vectors of all ranks: numatp copies its own into the window, meets the others and adds; MPI goes from one buffer to
another. One thread per rank. Prints JSON: us each and GB/s of the vector, medians over the rounds, and the ratio of the medians.
"""

import argparse
import json
import statistics
import time

from mpi4py import MPI

from numatp.engine.job import Job
from numatp.engine.start import start_ranks

SIZES = (512, 2048, 8192, 32768, 131072, 524288, 2097152)  # bytes
SECONDS = 0.02  # of one timing


def program(host, team, partials, x, out, num_bytes, count, rows):
    """`count` exchanges of x into out, as the engine has them."""
    from numatp.kernels import exchange
    from numatp.program.builder import Builder
    from numatp.program.values import Access, Buffer
    from numatp.program.words.together import LONG_EXCHANGE

    builder, lane, sizes = Builder("exchanges"), "lane", {"rows": rows.ctypes.data, "width": num_bytes // 4}
    own = np.array([x.ctypes.data], np.uint64)
    mine, result = [Buffer("partial", address=int(partials[i][host.seat])) for i in (0, 1)], Buffer("out", address=out.ctypes.data)
    for i in range(count):
        part, table = Access(mine[i % 2], lane), partials[i % 2].ctypes.data
        builder.add(
            exchange.sum_partials, [], [part], partials=own.ctypes.data, ranks=1, lanes=1, out=mine[i % 2].at(0), add=0, **sizes
        )
        builder.sync(team.handle, part)
        if host.seats > 2 and num_bytes > LONG_EXCHANGE:
            builder.add(exchange.reduce_scatter, [part], [part], partials=table, rank=host.seat, ranks=host.seats, lanes=1, **sizes)
            builder.sync(team.handle, part)
            kernel = exchange.gather
        else:
            kernel = exchange.sum_partials
        builder.add(
            kernel, [part], [Access(result, lane)], partials=table, ranks=host.seats, lanes=1, out=out.ctypes.data, add=0, **sizes
        )
    return builder.finish([own]).place()


def timed(action):
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=7)
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    started = start_ranks(Job(model="", threads=1), None)
    global np  # not before the start has bound this process
    import numpy as np

    from numatp.engine.team import Team
    from numatp.machine import native

    host, largest = started.world.host, max(SIZES)
    started.bind()
    team = Team(host, started.placement.cpus, started.placement.l3)
    library = native.library()
    flags = host.map_shared([library.numatp_flag_bytes(1, 1)] * host.seats)
    library.numatp_ranks_lanes(host.handle, flags[0].ctypes.data, 1)
    addresses = np.array([part.ctypes.data for part in host.map_shared([2 * largest] * host.seats)], np.uint64)
    partials = (addresses, addresses + np.uint64(largest))
    x, out, theirs = (
        np.full(largest // 4, 1.0 + host.seat, np.float32),
        np.zeros(largest // 4, np.float32),
        np.zeros(largest // 4, np.float32),
    )
    rows = np.ones(1, np.int64)
    counts = [max(2, min(1000, int(SECONDS / (1e-6 + size / 4e9)) // 2 * 2)) for size in SIZES]
    programs = [program(host, team, partials, x, out, size, count, rows) for size, count in zip(SIZES, counts, strict=True)]
    team.set_programs(programs)
    found = {size: ([], []) for size in SIZES}
    for number in range(options.rounds + 1):
        for index, (size, count) in enumerate(zip(SIZES, counts, strict=True)):
            out[:] = theirs[:] = 0
            world.Barrier()
            if host.seat:
                team.serve()
            else:
                ours = timed(lambda index=index: team.step(index)) / count
                team.stop()
            send, receive, allreduce = [x[: size // 4], MPI.FLOAT], [theirs[: size // 4], MPI.FLOAT], world.Allreduce
            world.Barrier()
            began = time.perf_counter()
            for _ in range(count):
                allreduce(send, receive)
            mpi = (time.perf_counter() - began) / count
            assert (out[: size // 4] == theirs[: size // 4]).all() and out[0] == host.seats * (host.seats + 1) / 2
            if number and not host.seat:  # the first round warms up
                found[size][0].append(1e6 * ours)
                found[size][1].append(1e6 * mpi)
    if not host.seat:
        rows_out = []
        for size, (ours, mpi) in found.items():
            a, b = statistics.median(ours), statistics.median(mpi)
            rows_out.append(
                {
                    "bytes": size,
                    "numatp_us": round(a, 3),
                    "mpi_us": round(b, 3),
                    "ratio": round(b / a, 2),
                    "numatp_gbs": round(size / a / 1e3, 2),
                    "mpi_gbs": round(size / b / 1e3, 2),
                }
            )
        crowded = started.placement.crowded
        print(
            json.dumps(
                {"ranks": host.seats, "crowded": crowded, "mpi": MPI.Get_library_version().split(",")[0], "sizes": rows_out},
                indent=1,
            )
        )
    team.close()
    host.close()


if __name__ == "__main__":
    main()
