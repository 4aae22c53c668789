"""WHO else is on this host? One interface for ranks that are alone, local processes or started by MPI: all meet in the window.

The window is one memfd: a control section that C knows (native/numatp.h), then sections that the ranks map together as they
learn their sizes. A memfd has no name, so nothing can be left behind.
"""

import ctypes
import errno
import json
import mmap
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from numatp.errors import MachineError, NumatpError, RankError, UserError
from numatp.machine import limits, native, pages

CONTROL_ROOM = 1 << 20  # bytes: more than the control section of 64 ranks, the only part that is not reserved before use
NOTE_LETTERS = 480  # of an error's text: JSON makes up to 6 bytes of each, and a note has 3072

PIECE = 1024  # characters of a note; as JSON within JSON an ASCII character takes at most 2 bytes


def described(failure: NumatpError | None) -> list[str] | None:
    """What went wrong on a rank, if anything, for the others: its kind and its text."""
    return [type(failure).__name__, str(failure)[:NOTE_LETTERS]] if failure else None


def failure_of(kind: str, text: str) -> NumatpError:
    """What went wrong on another rank."""
    return UserError(text) if kind == "UserError" else MachineError(text)


def make_window() -> int:
    """A new, empty window: a file descriptor."""
    try:
        return os.memfd_create("numatp-window", os.MFD_CLOEXEC)
    except OSError as refused:  # a container's rule, or too many open files
        try:
            window = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # has no name either
            if shutil.disk_usage(window).free < CONTROL_ROOM:  # writing there would end in SIGBUS
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return window
        except OSError as failure:
            raise MachineError(
                f"cannot make memory that ranks share: memfd_create: {limits.reason(refused.errno or 0)}; "
                f"a file in /dev/shm: {limits.reason(failure.errno or 0)}"
            ) from None


class Host:
    """This process at seat `seat` of the `seats` that ranks have on this host: ranks that share a window, and so memory."""

    def __init__(self, seat: int, seats: int, window: int, pids: list[int], crowded: bool, look: Callable[[], None]):
        """pids: process at each seat, 0 where unknown. look(): raises if a rank is known to be gone; called while waiting."""
        self.seat, self.seats = seat, seats
        self._window, self._look = window, look
        self._library = native.library()
        self._maps: list[mmap.mmap] = []
        self._own: list[tuple[int, int]] = []  # (start, bytes) of what this rank has reserved in the window
        num_bytes = self._library.numatp_control_bytes(seats)
        if os.fstat(window).st_size < num_bytes:
            os.ftruncate(window, num_bytes)
        self._num_bytes = num_bytes
        array = (ctypes.c_int32 * seats)(*pids)
        self.handle = self._library.numatp_ranks_open(self._map(0, num_bytes).ctypes.data, seat, seats, array, crowded)
        if not self.handle:
            raise MachineError(f"cannot join the other ranks: {os.strerror(ctypes.get_errno())}")
        # Also where nobody closes this: the maps go with it, and a thread looks into them for other hosts.
        self._leave = weakref.finalize(self, self._library.numatp_hosts_leave, self.handle)

    def _map(self, start: int, num_bytes: int) -> np.ndarray:
        mapped = mmap.mmap(self._window, num_bytes, offset=start)
        self._maps.append(mapped)
        return np.frombuffer(mapped, np.uint8)

    def check(self, status: int) -> None:
        """Raises what a status of the C runtime means, nothing for OK."""
        if status == native.ABORTED:
            text = self._library.numatp_abort_text(self.handle).decode(errors="replace")
            raise RankError(text, witness=bool(self._library.numatp_abort_witness(self.handle)))
        if status == native.FORKED:
            raise RankError("numatp was used in a forked child of the process that loaded the model: load it in the child")
        if status != native.OK:
            raise MachineError(f"the C runtime failed: {os.strerror(ctypes.get_errno())}")

    def look(self) -> None:
        """RankError if the job has ended."""
        if self._library.numatp_abort_rank(self.handle) >= 0:
            self.check(native.ABORTED)

    def set_crowded(self, crowded: bool) -> None:
        """Whether any two threads of the job share a cpu, where that was not known before the ranks met."""
        self._library.numatp_ranks_crowded(self.handle, crowded)

    def meet(self) -> None:
        """Returns when every rank has come; RankError if one died or ended the job."""
        while (status := self._library.numatp_meet(self.handle)) == native.PENDING:
            self._look()
        self.check(status)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank of this host, by seat, on each of them; values are small and JSON."""
        note = json.dumps(value).encode()
        assert len(note) < native.NOTE_BYTES, len(note)
        ctypes.memmove(self._library.numatp_note(self.handle, self.seat), note + b"\0", len(note) + 1)
        self.meet()
        notes = [ctypes.string_at(self._library.numatp_note(self.handle, seat)) for seat in range(self.seats)]
        self.meet()
        return [json.loads(note) for note in notes]

    def share(self, value: Any) -> Any:
        """The value of seat 0 (JSON, of any size) on every rank of this host."""
        text, pieces, more = json.dumps(value), [], True
        while more:
            mine = [text[:PIECE], len(text) > PIECE] if self.seat == 0 else None
            piece, more = self.gather(mine)[0]
            pieces.append(piece)
            text = text[PIECE:]
        return json.loads("".join(pieces))

    def agree(self, failure: NumatpError | None) -> None:
        """Every rank brings what went wrong on it, if anything; then all of them raise that of the first rank that has one."""
        for seat, other in enumerate(self.gather(described(failure))):
            if other:
                raise failure if failure and seat == self.seat else failure_of(*other)

    def map_shared(self, num_bytes: list[int]) -> list[np.ndarray]:
        """A new section of the window with one part per seat, uint8; each rank reserves its own part, so on its own node. What
        parts there are beyond the seats lies on the node of seat 0.
        """
        starts, end = [], self._num_bytes
        for size in num_bytes:
            starts.append(end)
            end += -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._agree(lambda: os.ftruncate(self._window, end) if self.seat == 0 else None)
        self._num_bytes = end
        sections = list[np.ndarray]()
        self._agree(lambda: sections.append(self._map(starts[0], end - starts[0])))
        parts = [self.seat, *(range(self.seats, len(num_bytes)) if self.seat == 0 else ())]
        own = [(starts[part], max(num_bytes[part], 1)) for part in parts]

        def reserve() -> None:
            for start, size in own:
                os.posix_fallocate(self._window, start, size)

        self._agree(reserve)
        self._own += own
        return [sections[0][start - starts[0] :][:size] for start, size in zip(starts, num_bytes, strict=True)]

    def count_pages(self) -> Counter[int] | None:
        """Pages by node of what this rank has reserved in the window; None where the kernel does not answer."""
        counted: Counter[int] = Counter()
        for start, size in self._own:
            # A mapping of its own, which joins no other because it is read-only: the kernel may tell of whole mappings only.
            with mmap.mmap(self._window, size, prot=mmap.PROT_READ, offset=start) as mapped:
                part = np.frombuffer(mapped, np.uint8)
                part[:: mmap.PAGESIZE].max()  # to the kernel a page is nowhere that this process has not looked at
                found = pages.count([pages.Region("window", part.ctypes.data, size)])
                del part
            if found is None:
                return None
            counted += sum(found.values(), Counter())
        return counted

    def _agree(self, action: Callable[[], Any]) -> None:
        failure = None
        try:
            action()
        except OSError as error:
            failure = MachineError(f"rank {self.seat} cannot share memory with the others: {limits.reason(error.errno or 0)}")
        self.agree(failure)

    def abort(self, text: str) -> None:
        """Ends the job on every rank."""
        self._library.numatp_abort(self.handle, text.encode()[:400])
        self._library.numatp_abort_text(self.handle)  # as if asked: this process knows

    def close(self) -> None:
        if self.handle:
            self._leave()
            self._library.numatp_ranks_close(self.handle)
            self.handle = None
            os.close(self._window)
