"""The process of a local rank that measures: `python -m numatp.measure.worker JOB`, started by ranks/local.py."""

import sys

from numatp.engine.worker import main

if __name__ == "__main__":
    sys.exit(main("numatp.measure.instruments", "MeasuringEngine"))
