"""The numatp command on a machine whose roofline comes out a million times too low."""

from importlib import import_module

from numatp.cli.main import main
from numatp.machine import isa

isa.set_numba_target(isa.choose())  # before what loads Numba
Meter = import_module("numatp.measure.roofline").Meter
measure = Meter._time


def too_slow(*arguments, **named):
    seconds, threads = measure(*arguments, **named)
    return 1e6 * seconds, threads


Meter._time = too_slow
main()
