"""Which MPI would mpi4py use? Asked in a child: loading an MPI starts threads, and may end the process.

python -m numatp.ranks.library: "Open MPI 5.0.11", or a line why there is none and status 1.
"""

import sys


def main() -> int:
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        print(str(error).split("\n")[0])
        return 1
    vendor, version = MPI.get_vendor()
    print(f"{vendor} {'.'.join(map(str, version))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
