"""A local rank's process: `python -m numatp.engine.worker JOB`, started by ranks/local.py."""

import json
import sys

from numatp.engine.start import join_as_worker
from numatp.errors import NumatpError, RankError
from numatp.machine.parent import end_with


def main() -> int:
    described = json.loads(sys.argv[1])
    end_with(described["parent"])
    try:
        job, started = join_as_worker(described)
        from numatp.engine.engine import serve

        return serve(job, started)
    except NumatpError as error:
        if isinstance(error, RankError) and error.witness:  # otherwise rank 0 says what went wrong
            print(f"numatp: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
