"""Runs a recorded program thread after thread instead of at the same time, with any one barrier taken out. Prints JSON.

Between two barriers threads may run in any order, so running thread 0's part of a section first, or last, must give the same bits.
Where a needed barrier is missing one of the two orders reads memory that was not written yet, which holds not-a-number.

python interleave.py MODEL ROWS PROGRAM
"""

import ctypes
import json
import sys

THREADS = 7  # divides no size of the tiny model, and none of its thin products, evenly: no two ops divide a buffer alike by chance
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    model, rows, program_name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    job = Job(model=model, threads=THREADS, max_rows=16)
    started = start_ranks(job, 1)
    import numpy as np

    from numatp.engine.engine import Engine
    from numatp.program.step import Span

    engine = Engine(job, started)
    # Not at position 0, where rotation changes nothing. The places of the new rows hold not-a-number before each run.
    cache, cache_bytes = engine.loaded.cache_at, engine.loaded.layout.cache.num_bytes
    ctypes.memset(cache, 0xFF, cache_bytes)
    blocks = [[0] for _ in engine.loaded.layout.pools]
    prompt = 99 if rows > 1 else 0  # of the rows below: a long one's
    engine.run([Span(0, [7, 8, 9], 0, blocks, want_logits=False)])
    before = ctypes.string_at(cache, cache_bytes)
    if program_name == "scores":
        engine.score([Span(0, list(range(rows)), 3, blocks, targets=list(range(rows)), prompt=prompt)])
    else:
        engine.run([Span(0, list(range(rows)), 3, blocks, prompt=prompt)])
    program = next(program for program in engine.programs if program.name == program_name)
    residual = next(life.buffer for life in program.layout.lives if life.buffer.name == "residual")

    def outputs():
        """What rank 0 reads: spare rows of the last group hold anything."""
        if program_name == "scores":
            return engine.window.scores[0][:rows, :, :3]
        return engine.window.logits[:1, : engine.loaded.spec.sizes.vocab]

    def results():
        return ctypes.string_at(residual.address, rows * residual.stride) + outputs().tobytes()

    wanted = results()

    def run(without, order):
        for memory in program.keep:
            if isinstance(memory, np.ndarray) and memory.dtype == np.uint8:
                memory.fill(0xFF)
        ctypes.memmove(cache, before, cache_bytes)
        for parity in engine.window.partials:
            ctypes.memset(int(parity[0]), 0xFF, job.max_rows * engine.loaded.spec.sizes.width * 4)
        engine.window.logits.fill(float("nan"))
        engine.window.scores[0].fill(float("nan"))
        sections = [[]]
        for i, op in enumerate(program.ops):
            if op.barrier and i != without:
                sections.append([])
            sections[-1].append(op)
        for section in sections:
            done = [0] * THREADS
            for thread in order:
                advance(section, done, thread, len(section))
        return results()

    def advance(section, done, thread, end):
        """A thread's next ops, up to the end-th; where it goes on with what the one before it has begun, that one's up to there."""
        while done[thread] < end:
            op = section[done[thread]]
            if op.name == "take_over":
                begun = max((i for i in range(done[thread]) if section[i].name == "hand_on"), default=0)
                if ctypes.c_int64.from_address(op.arguments.values["waits"] + 8 * thread).value:
                    advance(section, done, thread - 1, begun)
            elif op.name != "hand_on":
                KERNEL(op.address)(op.record.ctypes.data, thread, THREADS)
            done[thread] += 1

    orders = (range(THREADS), range(THREADS)[::-1])
    barriers = [i for i, op in enumerate(program.ops) if op.barrier]
    unneeded = [i for i in barriers if all(run(i, order) == wanted for order in orders)]
    print(
        json.dumps(
            {
                "any_order": all(run(None, order) == wanted for order in orders),
                "barriers": len(barriers),
                "exchanges": sum(op.name == "exchange.sum_partials" for op in program.ops),
                "unneeded": [f"{i} before {program.ops[i].name}" for i in unneeded],
            }
        )
    )
    engine.close()


if __name__ == "__main__":
    main()
