"""A local rank's process: `python -m numatp.engine.worker JOB`, started by ranks/local.py."""

import json
import sys
from importlib import import_module

from numatp.engine.start import join_as_worker
from numatp.errors import NumatpError, RankError
from numatp.machine.parent import end_with


def main(module: str, name: str) -> int:
    """The rank's life with an engine of the class `name` of `module`, which loads numpy, so not before the rank has its place."""
    described = json.loads(sys.argv[1])
    end_with(described["parent"])
    try:
        job, started = join_as_worker(described)
        from numatp.engine.engine import serve

        return serve(job, started, getattr(import_module(module), name))
    except NumatpError as error:
        if isinstance(error, RankError) and error.witness:  # otherwise rank 0 says what went wrong
            print(f"numatp: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main("numatp.engine.engine", "Engine"))
