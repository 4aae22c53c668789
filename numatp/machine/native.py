"""The C runtime (native/numatp.h) through ctypes; calls release the GIL."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from numatp.errors import MachineError

OK, ABORTED, PENDING, STOPPED, FORKED, SYSTEM = range(6)
NOTE_BYTES = 3072


class Op(Structure):
    """numatp_op of native/numatp.h."""

    _fields_ = (("run", c_void_p), ("args", c_void_p), ("barrier", c_int64))


class Piece(Structure):
    """numatp_piece of native/numatp.h."""

    _fields_ = (("at", c_void_p), ("row_bytes", c_int64), ("stride", c_int64), ("rows", c_void_p), ("host", c_int64))


class Pieces(Structure):
    """numatp_pieces of native/numatp.h."""

    _fields_ = (("piece", POINTER(Piece)), ("count", c_int64))


def pieces(of: Sequence[Piece]) -> Pieces:
    """The same for C."""
    return Pieces((Piece * len(of))(*of), len(of))


class ProgramRecord(Structure):
    """numatp_program of native/numatp.h."""

    _fields_ = (
        ("ops", POINTER(Op)), ("num_ops", c_int64), ("num_syncs", c_int64), ("times", c_void_p), ("crossings", c_int64),
        ("told", Pieces), ("returned", Pieces), ("own_time", c_int64),
    )  # fmt: skip


class Mpi(Structure):
    """numatp_mpi of native/numatp.h."""

    _fields_ = (
        ("isend", c_void_p), ("irecv", c_void_p), ("test", c_void_p), ("cancel", c_void_p), ("handle_bytes", c_int64),
        ("communicator", c_uint64), ("byte", c_uint64),
    )  # fmt: skip


SIGNATURES = {
    "numatp_control_bytes": (c_int64, [c_int]),
    "numatp_ranks_open": (c_void_p, [c_void_p, c_int, c_int, POINTER(c_int32), c_int]),
    "numatp_ranks_crowded": (None, [c_void_p, c_int]),
    "numatp_ranks_close": (None, [c_void_p]),
    "numatp_meet": (c_int, [c_void_p]),
    "numatp_note": (c_void_p, [c_void_p, c_int]),
    "numatp_abort": (None, [c_void_p, c_char_p]),
    "numatp_abort_rank": (c_int, [c_void_p]),
    "numatp_abort_text": (c_char_p, [c_void_p]),
    "numatp_abort_witness": (c_int, [c_void_p]),
    "numatp_flag_bytes": (c_int64, [c_int, c_int]),
    "numatp_ranks_lanes": (None, [c_void_p, c_void_p, c_int]),
    "numatp_team_open": (c_void_p, [c_void_p, c_int, POINTER(c_int32), POINTER(c_int32)]),
    "numatp_team_close": (None, [c_void_p]),
    "numatp_team_run": (c_int, [c_void_p, POINTER(ProgramRecord)]),
    "numatp_team_programs": (None, [c_void_p, POINTER(ProgramRecord), c_int64]),
    "numatp_team_step": (c_int, [c_void_p, c_int64]),
    "numatp_team_serve": (c_int, [c_void_p]),
    "numatp_team_stop": (c_int, [c_void_p]),
    "numatp_hosts_open": (c_void_p, [POINTER(Mpi), c_int, c_int, c_int, POINTER(c_int32), POINTER(c_char_p)]),
    "numatp_hosts_quiet": (None, [c_void_p]),
    "numatp_ranks_hosts": (None, [c_void_p, c_void_p]),
    "numatp_hosts_leave": (None, [c_void_p]),
    "numatp_hosts_swap": (c_int, [c_void_p, c_char_p, c_int64, c_void_p, c_int64]),
    "numatp_pages_reserve": (c_void_p, [c_int64]),
    "numatp_pages_release": (None, [c_void_p, c_int64]),
    "numatp_pages_bind": (c_int, [c_void_p, c_int64, c_int]),
    "numatp_pages_nodes": (c_int, [c_void_p, c_int64, POINTER(c_int64), c_int, POINTER(c_int64)]),
    "numatp_page_bytes": (c_int64, []),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions with their types."""
    path = Path(__file__).parent.parent / "_native.so"
    if not path.exists():
        raise MachineError("numatp's C runtime is not built: install numatp with pip ('pip install .' in its folder)")
    loaded = ctypes.CDLL(str(path), use_errno=True)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise MachineError("numatp's C runtime is older than its Python: install numatp again ('pip install .' in its folder)")
        function.restype, function.argtypes = result, arguments
    return loaded


def address_of(name: str) -> int:
    """Address of one of the library's functions, e.g. of an op's kernel."""
    address = ctypes.cast(getattr(library(), name), c_void_p).value
    assert address
    return address
