"""`numatp bandwidth` whose timings are a tenth as long, for who does not ask how fast: python run_bandwidth.py bandwidth ..."""

import sys

from numatp.cli.main import main
from numatp.measure import bandwidth, roofline

bandwidth.SECONDS = roofline.SECONDS = 0.01
if __name__ == "__main__":
    sys.exit(main())
