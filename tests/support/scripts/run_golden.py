"""A golden model with one feature after another taken out (golden.py), in one process on one rank.

python run_golden.py NAME — prints JSON: per feature the largest relative error of the logits of a prompt; "" is the whole model.
"""

import contextlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[2]))


def main():
    from support.models import golden

    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    name = sys.argv[1]
    job = Job(model=str(golden.GOLDEN / f"{name}.gguf"), threads=1, max_rows=96)
    started = start_ranks(job, 1)
    import numpy as np

    from numatp.engine import programs
    from numatp.engine.blocks import Tables
    from numatp.engine.engine import Engine
    from numatp.program.ops import Ops
    from numatp.program.step import Span
    from numatp.weights.load import _floats_at
    from numatp.weights.matrix import Vector

    recorded = np.load(golden.GOLDEN / f"{name}.npz")
    tokens, wanted = recorded["tokens0"].tolist(), recorded["logits0"].astype(np.float64)
    engine = Engine(job, started)
    whole = engine.loaded.spec

    def record(spec=whole):
        loaded = replace(engine.loaded, model=replace(engine.loaded.model, spec=spec))
        recorded, _ = programs.record(engine.world, loaded, engine.window, engine.team, check_ranks=False)
        programs.give_memory([one.program for one in recorded])
        engine.programs = [one.program for one in recorded]
        engine.team.set_programs(engine.programs)

    @contextlib.contextmanager
    def without(kind, *how):
        if kind == "tensors":
            pattern, value = how
            found = [t for n, t in engine.loaded.weights.tensors.items() if isinstance(t, Vector) and re.search(pattern, n)]
            assert found, pattern
            kept = [_floats_at(vector).copy() for vector in found]
            for vector in found:
                _floats_at(vector)[:] = value
            record()
            yield
            for vector, values in zip(found, kept, strict=True):
                _floats_at(vector)[:] = values
        elif kind == "spec":
            (changes,) = how
            record(replace(whole, **{key: change(getattr(whole, key)) for key, change in changes.items()}))
            yield
        else:
            word, function = how
            true = getattr(Ops, word)
            with patch.object(Ops, word, lambda *args, **named: function(true, *args, **named)):
                record()
            yield

    def error():
        """Of some positions, each the last of a Step that goes on where the one before ended."""
        tables, largest, first = Tables(engine.blocks), 0.0, 0
        for last in (19, 40, 70, len(tokens) - 1):
            part = tokens[first : last + 1]
            engine.run([Span(0, part, first, tables.prepare(first, len(part)), prompt=len(tokens) if len(part) > 1 else 0)])
            apart = engine.window.logits[0, : whole.sizes.vocab] - wanted[last]
            largest = max(largest, float(np.linalg.norm(apart) / np.linalg.norm(wanted[last])))
            first = last + 1
        tables.release()
        return largest

    errors = {"": error()}
    for feature, way in golden.FEATURES[name].items():
        with without(*way):
            errors[feature] = error()
    print(json.dumps(errors))
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
