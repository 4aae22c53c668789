"""`numatp bench` whose roofline is measured in a tenth of the time, for who does not ask how fast: python run_bench.py bench ..."""

import sys

from numatp.cli.main import main
from numatp.measure import roofline

roofline.SECONDS = 0.01
if __name__ == "__main__":
    sys.exit(main())
