"""A folder with one config.json after another, in one process on one rank: the logits behind a prompt, as one .npy file.

python run_configs.py FOLDER GIVEN OUT; GIVEN is a JSON file: "tokens" of the prompt, and "configs".
"""

import json
import sys
from pathlib import Path


def main():
    from numatp.engine.job import Job
    from numatp.engine.start import start_ranks

    folder, path, out = sys.argv[1:]
    given = json.loads(Path(path).read_text())
    tokens = given["tokens"]
    job = Job(model=folder, threads=1, max_rows=len(tokens), max_sequences=1, context=len(tokens), quantize="none")
    started = start_ranks(job, 1)
    import numpy as np

    from numatp.engine.blocks import Tables
    from numatp.engine.engine import Engine
    from numatp.program.step import Span

    rows = []
    for config in given["configs"]:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        engine = Engine(job, started)
        tables = Tables(engine.blocks)
        engine.run([Span(0, tokens, 0, tables.prepare(0, len(tokens)), prompt=len(tokens))])
        rows.append(engine.window.logits[0, : engine.loaded.spec.sizes.vocab].copy())
        engine.close()
    np.save(out, np.array(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
