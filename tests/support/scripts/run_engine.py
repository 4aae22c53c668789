"""A small program for tests: logits of the last token of each prompt part, as one .npy file.

python run_engine.py MODEL OUT RANKS THREADS TOKENS CHUNKS [SHARES] — chunks like 5,1,1: how many tokens each Step gets; shares
like 3,1: of the model per rank.
OUT.scores.npy gets the log-probability of each token after the first, from the score op.
"""

import os
import sys


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    model, out, ranks, threads, tokens, chunks, *rest = sys.argv[1:]
    shares, quantize = [float(share) for share in rest[0].split(",")] if rest else None, os.environ.get("QUANTIZE")
    job = Job(
        model=model, threads=int(threads) or None, max_rows=64, max_sequences=2, tensor_split=shares, quantize=quantize
    )  # fmt: skip
    started = start_ranks(job, int(ranks) or None)
    import numpy as np

    from numatp.engine.blocks import Tables
    from numatp.engine.engine import Engine, serve
    from numatp.kernels.compile import Kernel
    from numatp.program.step import Span

    if started.world.rank:
        status = serve(job, started)
        print("compiled", *Kernel.compiled, flush=True)
        return status
    engine = Engine(job, started)
    ids, position, rows = [int(t) for t in tokens.split(",")], 0, []
    tables = Tables(engine.blocks)
    for count in map(int, chunks.split(",")):
        prompt = len(ids) if count > 1 else 0
        engine.run([Span(1, ids[position : position + count], position, tables.prepare(position, count), prompt=prompt)])
        position += count
        rows.append(engine.window.logits[0, : engine.loaded.spec.sizes.vocab].copy())
    np.save(out, np.array(rows))
    other, scores = Tables(engine.blocks), []
    for start_at in range(0, len(ids) - 1, 33):
        part = ids[start_at : min(start_at + 33, len(ids) - 1)]
        targets, prompt = ids[start_at + 1 : start_at + 34], len(ids) if len(part) > 1 else 0
        span = Span(0, part, start_at, other.prepare(start_at, len(part)), targets=targets, prompt=prompt)
        scores.append(engine.score([span]))
    np.save(out.replace(".npy", ".scores.npy"), np.concatenate(scores))
    print("compiled", *engine.compiled_kernels())
    assert not {"numba", "llvmlite"} & set(sys.modules)  # an engine has its kernels compiled, and runs them
    engine.close()
    if started.workers:
        started.workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
