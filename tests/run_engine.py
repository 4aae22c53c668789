"""A small program for tests: logits of the last token of each prompt part, as one .npy file.

python run_engine.py MODEL OUT RANKS THREADS TOKENS CHUNKS — chunks like 5,1,1: how many tokens each Step gets.
"""

import sys


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start

    model, out, ranks, threads, tokens, chunks = sys.argv[1:]
    job = Job(model=model, threads=int(threads) or None, max_rows=64)
    started = start(job, int(ranks) or None)
    import numpy as np

    from numatp.engine.engine import Engine, serve

    if started.comm.rank:
        return serve(job, started)
    engine = Engine(job, started)
    ids, position, rows = [int(t) for t in tokens.split(",")], 0, []
    for count in map(int, chunks.split(",")):
        engine.run_rows(ids[position : position + count], position, want_logits=True)
        position += count
        rows.append(engine.logits.view(np.float32)[: engine.spec.sizes.vocab].copy())
    np.save(out, np.array(rows))
    print("compiled", *engine.compiled_kernels())
    engine.close()
    if started.workers:
        started.workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
