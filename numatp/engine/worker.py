"""A local rank's process: `python -m numatp.engine.worker JOB`, started by ranks/local.py."""

import json
import sys

from numatp.engine.start import start_worker
from numatp.errors import NumatpError, RankError
from numatp.machine.parent import end_with


def main() -> int:
    described = json.loads(sys.argv[1])
    end_with(described["parent"])
    try:
        job, start = start_worker(described)
        from numatp.engine.engine import serve

        return serve(job, start)
    except NumatpError as error:
        if isinstance(error, RankError) and error.witness:  # otherwise rank 0 says what went wrong
            print(f"numatp: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
