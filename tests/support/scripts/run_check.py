"""One Step whose ranks compare what they must hold alike: python run_check.py MODEL FAULT. Rank 0 prints what it finds.

FAULT: what rank 1 does wrong.
"""

import sys

import numpy as np


def nothing(engine):
    pass


def lost_residual(engine):
    """The second exchange replaces the residual instead of adding to it."""
    exchanges = [op for op in engine.programs[engine.many_rows].ops if op.name == "exchange.sum_partials"]
    exchanges[1].record["add"] = 0


def other_experts(engine):
    """What is exchanged stays alike on all ranks; only who computes it differs."""
    norm = engine.loaded.weights.vector("blk.1.ffn_norm.weight")
    engine.floats_at(norm)[:] = np.random.default_rng(0).standard_normal(norm.length)


def main(model, fault):
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks
    from numatp.errors import MachineError

    job = Job(model=model, max_rows=16, check_ranks=True)
    started = start_ranks(job, None)
    from numatp.engine import programs
    from numatp.engine.blocks import Tables
    from numatp.engine.engine import Engine
    from numatp.program.step import Span
    from numatp.weights.load import _floats_at

    engine = Engine(job, started)
    engine.many_rows, engine.floats_at = programs.MANY_ROWS, _floats_at
    if started.world.rank:
        if started.world.rank == 1:
            globals()[fault](engine)
        started.world.host.meet()
        return engine.serve()
    started.world.host.meet()
    tables = Tables(engine.blocks)
    try:
        for position in (0, 4):
            engine.run([Span(0, [1, 2, 3, 4], position, tables.prepare(position, 4))])
        engine.run([Span(0, [5], 7, tables.prepare(7, 1))])
        print("alike:", len(engine._recorded[programs.ONE_ROW].digests), "digests")
    except MachineError as error:
        print(error)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
