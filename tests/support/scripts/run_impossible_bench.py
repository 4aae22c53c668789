"""The numatp command on a machine whose roofline comes out a million times too low, the first COUNT times that it is measured.

python run_impossible_bench.py COUNT bench ...
"""

import sys
from importlib import import_module

from numatp.cli.main import main

Bench = import_module("numatp.measure.bench").Bench
roofline = import_module("numatp.measure.roofline")
measure, ceiling = roofline.Meter._time, Bench.ceiling
count = int(sys.argv.pop(1))
measured = 0


def too_slow(*arguments, **named):
    seconds, threads = measure(*arguments, **named)
    return (1e6 * seconds if measured <= count else seconds), threads


def counted(bench):
    global measured
    measured += 1
    return ceiling(bench)


roofline.Meter._time, Bench.ceiling, roofline.SECONDS = too_slow, counted, 0.01
if __name__ == "__main__":
    sys.exit(main())
