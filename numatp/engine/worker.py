"""A local rank's process: `python -m numatp.engine.worker JOB`, started by ranks/local.py."""

import json
import sys

from numatp.engine.start import start_worker
from numatp.errors import NumatpError


def main() -> int:
    try:
        job, start = start_worker(json.loads(sys.argv[1]))
    except NumatpError as error:
        print(f"numatp: {error}", file=sys.stderr)
        return error.exit_status
    from numatp.engine.engine import serve

    return serve(job, start)


if __name__ == "__main__":
    sys.exit(main())
