"""What the engine itself says of a model: python run_plan.py MODEL RANKS CONTEXT. One JSON line."""

import json
import sys


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    model, ranks, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    job = Job(model=model, context=context)
    started = start_ranks(job, ranks)
    import numpy as np

    from numatp.engine.engine import Engine
    from numatp.engine.programs import ONE_ROW

    engine = Engine(job, started)
    window = engine.window
    partials = 2 * int(window.partials[1][0] - window.partials[0][0])
    step = sum(array.nbytes for array in vars(window.step).values() if isinstance(array, np.ndarray))
    own = (window.scores[0], window.tops[0], window.digests[0], window.logits)
    said = {
        "window": partials + step + sum(array.nbytes for array in own),
        "weights": engine.loaded.layout.weight_bytes, "cache": engine.loaded.layout.cache.num_bytes, "read": engine.bytes_per_token,
        "activations": max(program.activation_bytes for program in engine.programs),
        "threads": engine.team.threads, "exchanges": engine.programs[ONE_ROW].num_syncs,
    }  # fmt: skip
    engine.close()
    if started.workers:
        started.workers.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
