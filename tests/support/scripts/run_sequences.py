"""Several sequences in each Step: logits of the last token of each span, then the scores of all tokens, as one .npz file.

python run_sequences.py MODEL OUT RANKS THREADS PLAN — PLAN is JSON: "sequences", lists of tokens, and "steps", lists of
[sequence, number of tokens]; "cache", its type; "halves", whether long Steps go in two halves; and perhaps more fields of a Job.
Prints JSON: per kind of cache [its window, blocks taken, different blocks among them].
"""

import contextlib
import ctypes
import json
import sys

NOWHERE = 1 << 40  # no block has this number: reading it ends the process
MAX_ROWS = 48


def go_in_halves(always):
    """Steps of several hosts that can. A list that will hold their rows."""
    from numatp.engine import ways
    from numatp.program import halves

    halved = []

    @contextlib.contextmanager
    def one_step(self, rows):
        halved.extend([rows] * always)
        yield always

    halves.LEAST, ways.TwoWays.one_step = 16, one_step
    return halved


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    model, out, ranks, threads, text = sys.argv[1:]
    plan = json.loads(text)
    sequences, steps, in_halves = plan.pop("sequences"), plan.pop("steps"), plan.pop("halves", False)
    job = Job(
        model=model, threads=int(threads) or None, max_rows=MAX_ROWS, max_sequences=len(sequences), quantize="none",
        cache_type=plan.pop("cache"), **plan,
    )  # fmt: skip
    started = start_ranks(job, int(ranks) or None)
    import numpy as np

    from numatp.engine.blocks import Tables
    from numatp.engine.engine import Engine, serve
    from numatp.kernels.layout import CACHE_BLOCK
    from numatp.program.step import Span

    if started.world.rank:
        return serve(job, started)
    halved = go_in_halves(in_halves)
    engine = Engine(job, started)
    for free in engine.blocks._free:
        np.random.default_rng(0).shuffle(free)
    windows = [pool.window for pool in engine.blocks.pools]
    vocab, rows, scores, counts = engine.loaded.spec.sizes.vocab, {}, {}, []

    def spans_of(step, done, tables, scored):
        spans = []
        for sequence, count in step:
            tokens, first = sequences[sequence], done[sequence]
            count = min(count, len(tokens) - scored - first)
            if count:
                done[sequence] += count
                part, targets = tokens[first : first + count], tokens[first + 1 : first + 1 + count] if scored else []
                own, prompt = usable(tables[sequence].prepare(first, count), first), len(tokens) if count > 1 else 0
                spans.append(Span(sequence, part, first, own, targets=targets, prompt=prompt))
        return sorted(spans, key=lambda span: span.prompt, reverse=True)

    def usable(numbers, position):
        """The tables with every place before a window made unusable."""
        hidden = [max(position + 1 - window, 0) // CACHE_BLOCK for window in windows]
        return [[NOWHERE] * places + row[places:] for places, row in zip(hidden, numbers, strict=True)]

    def wipe_free_blocks():
        """Fills what no sequence holds with not-a-number, on rank 0: a block given back too early is seen."""
        for (start, size), free in zip(engine.loaded.layout.cache.parts, engine.blocks._free, strict=False):  # behind them: states
            for block in free:
                ctypes.memset(engine.loaded.cache_at + start + block * size, 0xFF, size)

    for scored in (False, True):  # the second time in blocks and states that the first time has left full
        tables, done = [Tables(engine.blocks) for _ in sequences], [0] * len(sequences)
        for step in steps:
            spans = spans_of(step, done, tables, scored)
            if not spans:
                continue
            wipe_free_blocks()
            if scored:
                result = iter(engine.score(spans).tolist())
                for span in spans:
                    scores.setdefault(span.sequence, []).extend(next(result) for _ in span.tokens)
            else:
                engine.run(spans)
                for i, span in enumerate(spans):
                    position = span.position + len(span.tokens) - 1
                    rows[f"{span.sequence},{position}"] = engine.window.logits[i, :vocab].copy()
        for pool, window in enumerate(windows):
            taken = [number for table in tables for number in table.numbers[pool]]
            counts.append([window, len(taken), len(set(taken))])
        for table in tables:
            table.release()
    np.savez(out, **rows, **{f"scores{sequence}": values for sequence, values in scores.items()})
    print(json.dumps(counts))
    engine.close()
    assert bool(halved) == in_halves, "no Step went in halves"
    if started.workers:
        started.workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
