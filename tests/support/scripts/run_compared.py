"""`numatp bench --compare` in two rounds instead of three: python run_compared.py bench ..."""

import sys

from numatp.cli import bench_compare
from numatp.cli.main import main

bench_compare.ROUNDS = 2
if __name__ == "__main__":
    sys.exit(main())
