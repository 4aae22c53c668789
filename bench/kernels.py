"""GB/s and GOP/s of each op, format and instruction set, beside the roofline: `python bench/kernels.py [--formats Q4_0,Q6_K]`

A process of its own per instruction set, with all cores that it may use. Every product is measured with one row, where memory
counts, and with many, where the dot product does; the other ops in us. Prints JSON.
"""

import argparse
import json
import os
import subprocess
import sys

from numatp.machine import isa, topology

ROWS, COLUMNS, WIDTH = 512, 4096, 4096
REPEATS = 5


def child(options):
    import numpy as np

    from numatp import quants
    from numatp.engine.team import Team
    from numatp.kernels.roofline import CONTROL_WORDS
    from numatp.kernels.rows import GROUP, MANY
    from numatp.machine import pages
    from numatp.measure.roofline import Area, Loops, Meter
    from numatp.program.builder import Program
    from numatp.program.ops import Ops
    from numatp.program.recorder import Site
    from numatp.program.step import StepShape, StepWindow
    from numatp.program.values import Buffer, Value
    from numatp.quants.table import FORMATS
    from numatp.ranks.alone import alone
    from numatp.weights.matrix import Matrix, Vector

    cpus = sorted(os.sched_getaffinity(0))
    machine = topology.read_machine()
    cores = [core for core in machine.cores if core.cpus[0] in cpus]
    host = alone(False).host
    team = Team(host, [core.cpus[0] for core in cores], [core.l3 for core in cores])
    area = Area.reserve(options.mib << 20, team.threads, team.run)
    control, sums = np.zeros(CONTROL_WORDS, np.int64), np.zeros((team.threads, 32), np.int32)
    loops = Loops(area, 0, control, sums)
    meter = Meter(lambda index: team.run(*loops.calls[index][1:]), control, [sums])
    # Bytes that make small finite numbers of every scale; how long a kernel takes does not depend on them.
    memory = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * area.num_bytes).from_address(area.address))
    read, dot = meter.read(area.part_bytes), meter.dot()
    memory[:] = 0x2C
    shape = StepShape(ROWS, 1, 1, 1)
    step = StepWindow(shape, np.zeros(shape.num_bytes // 8, np.int64))
    partials = tuple(np.array([pages.reserve(4 * (ROWS + GROUP) * WIDTH)], np.uint64) for _ in (0, 1))
    values = np.random.default_rng(0).standard_normal((ROWS, 4 * COLUMNS)).astype(np.float32)
    weight = np.ones(4 * COLUMNS, np.float32)
    results = []

    def measure(rows, record):
        """Seconds of each op, by name: the best of some runs."""
        site = Site(
            rank=0, seat=0, seats=1, threads=team.threads, lanes=team.threads, team=team.handle, width=WIDTH, step=step,
            partials=partials, logits=0, logit_stride=0, scores=0, tops=0,
        )  # fmt: skip
        ops = Ops("one", site, 1 if rows == 1 else ROWS)
        step.num_rows[:] = rows, rows if 0 < MANY <= rows else 0
        buffer = Buffer("x", COLUMNS * 4, values.ctypes.data)
        x = buffer.holds = Value("x", buffer, COLUMNS, step.num_rows.ctypes.data)
        record(ops, x)
        made = ops.finish().place()
        times = np.zeros((team.threads, len(made.ops) + 1, 2), np.int64)
        program = Program(made.name, made.ops, 0, made.keep, times)
        found = []
        for _ in range(REPEATS + 1):
            times[:] = 0
            team.run_program(program)
            found.append(times[:, :-1, 1].max(0) / 1e9)
        return {op.name: float(seconds) for op, seconds in zip(made.ops, np.min(found[1:], 0), strict=True)}

    for name in options.formats or quants.names():
        format = FORMATS[name]
        tile_bytes = format.bytes_of_tile(COLUMNS)
        for rows in (1, ROWS):
            tiles = min(area.num_bytes // tile_bytes, 65536 if rows == 1 else 4096 // 16)
            if format.super_bytes:  # the phase, which no other byte may look like (kernels/superblock.py)
                memory[: tiles * tile_bytes].reshape(tiles, tile_bytes)[:, :8] = 0
            matrix = Matrix("w", format, area.address, tiles * 16, COLUMNS)
            seconds = measure(rows, lambda ops, x, matrix=matrix: ops.matmul(x, matrix))
            (product,) = [value for op, value in seconds.items() if op.endswith(".matmul")]
            gbs, gops = matrix.num_bytes / product / 1e9, 2 * rows * matrix.rows * COLUMNS / product / 1e9
            percent = 100 * max(1e9 * gbs / read.per_second, 1e9 * gops / dot.per_second)
            rest = 1e6 * (sum(seconds.values()) - product)
            results.append({
                "op": "matmul", "format": name, "rows": rows, "gbs": round(gbs, 2), "gops": round(gops, 1),
                "roofline_percent": round(percent, 1), "activation_us": round(rest, 2),
            })  # fmt: skip
            print(f"{options.level} {name} {rows} rows: {gbs:.1f} GB/s, {gops:.0f} GOP/s", file=sys.stderr)
    vector = Vector("w", weight.ctypes.data, COLUMNS)
    for rows in (1, ROWS):
        seconds = measure(rows, lambda ops, x: (ops.rms_norm(x, vector, 1e-5), ops.silu_gate(x)))
        results += [{"op": op, "rows": rows, "us": round(1e6 * value, 2)} for op, value in seconds.items()]
    print(json.dumps({
        "isa": options.level, "threads": team.threads, "read_gbs": round(read.per_second / 1e9, 2), "read_bytes": read.num_bytes,
        "dot_gops": round(dot.per_second / 1e9, 1), "ops": results,
    }))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", type=lambda text: text.split(","), help="a list (default: all)")
    levels = [level.name for level in isa.LEVELS]
    parser.add_argument(
        "--isa", type=lambda text: text.split(","), default=levels, help="a list (default: all that this machine has)"
    )
    parser.add_argument("--mib", type=int, default=512, help="of weights that a product with one row reads (default 512)")
    parser.add_argument("--level", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.level:
        return child(options)
    found = []
    for level in options.isa:
        command = [sys.executable, __file__, "--level", level, "--mib", str(options.mib)]
        if options.formats:
            command += ["--formats", ",".join(options.formats)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NUMATP_ISA": level}, check=False)
        if result.returncode == 0:
            found.append(json.loads(result.stdout))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
