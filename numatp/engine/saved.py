"""Prompts that outlive the process: what the cache knows is written into files, all of it while nobody asks for anything and at the
end, and a little between Steps; and read back at the next start of the same model with the same settings.

A file holds one block of a pool, or one state, of every rank, so that a text of which the beginning is there needs only its rest.
"""

import logging
import time
from array import array
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from numatp.engine.engine import Engine
from numatp.engine.job import quantize_of
from numatp.engine.prefixes import Prefix
from numatp.files.identity import identity
from numatp.files.prompt_cache import PromptCache, Saved
from numatp.kernels.compile import identity as kernels_identity
from numatp.kernels.layout import CACHE_BLOCK

log = logging.getLogger("numatp")
PAUSE = 32  # times what saving a part took until the next one, beside requests: it takes 3 % of their time at most


class SavedPrompts:
    """On rank 0's engine thread."""

    def __init__(self, engine: Engine, writer: ThreadPoolExecutor, wake: Callable[[], None]):
        """writer: one thread, which is not bound as the engine's is. wake(): called when it has written something."""
        assert engine.carry and engine.job.prompt_cache_dir
        self._engine, self._carry, self._writer, self._wake = engine, engine.carry, writer, wake
        folder = Path(engine.job.prompt_cache_dir)
        self._files = PromptCache(
            folder, _settings(engine), CACHE_BLOCK * array("q").itemsize, engine.carry.part_bytes,
            engine.job.prompt_cache_mib << 20,
        )  # fmt: skip
        self._writing: Future[bool] | None = None
        self._waiting: list[tuple[Prefix, int, int]] | None = None  # parts to be written, the next one last; None: to be looked for
        self._failed = False
        self._rests_until = 0.0  # beside requests

    def restore(self) -> None:
        """As much as there is room for, of what was used last."""
        prefixes, chosen, num_bytes = self._engine.prefixes, [], 0
        room = prefixes.room()
        for name, part in self._files.names():
            if room[part]:
                room[part] -= 1
                chosen.append((name, part))
        for one in reversed(chosen):
            saved = self._files.read(one)
            if saved:
                prefix = Prefix(saved.name, saved.tokens, [None] * len(self._engine.blocks.pools), saved.exact, saved.used)
                number = prefixes.restore(prefix, saved.part)
                self._carry.write(self._engine.run_carry, saved.part, number, saved.content)
                num_bytes += len(saved.content)
        prefixes.restored()
        others = self._files.others()
        more = f"; {others / 1e6:.1f} MB of another model, or of other ranks or settings, are left alone" if others else ""
        log.info(f"{self._engine.job.prompt_cache_dir}: {num_bytes / 1e6:.1f} MB of prompts{more}")

    def save_next(self) -> None:
        """Begins to write a part, unless one is being written or all are."""
        if self._writing:
            if not self._writing.done():
                return
            self._written(self._writing)
        if self._failed:
            return
        if self._waiting is None:
            self._waiting = self._look()
        if self._waiting:
            prefix, part, number = self._waiting.pop()
            content = self._carry.read(self._engine.run_carry, part, number)
            saved = Saved(prefix.name, part, prefix.tokens, prefix.exact, prefix.used, content)
            self._writing = self._writer.submit(self._files.write, saved)
            self._writing.add_done_callback(lambda written: self._wake())

    def step_done(self) -> None:
        """Between two Steps: the cache may know more than before, and less. A server that never rests would lose all if it was
        killed, so a part is saved now and then.
        """
        self._waiting = None
        began = time.monotonic()
        if began >= self._rests_until:
            self.save_next()
            now = time.monotonic()
            self._rests_until = now + PAUSE * (now - began)

    def finish(self) -> None:
        """Writes all that is not yet written."""
        while not self._failed:
            self.save_next()
            if not self._writing:
                break
            self._writing.exception()  # waits

    def _written(self, writing: "Future[bool]") -> None:
        self._writing = None
        try:
            if not writing.result():
                self._waiting = []  # the others were used earlier still
        except OSError as error:
            self._failed = True
            log.warning(f"{self._engine.job.prompt_cache_dir}: prompts are not written any more: {error.strerror or error}")

    def _look(self) -> list[tuple[Prefix, int, int]]:
        """What no file holds, the first to be written last; files of what was used again are told so."""
        missing = []
        for prefix, part, number in self._engine.prefixes.parts():
            used = self._files.used((prefix.name, part))
            if used is None:
                missing.append((prefix, part, number))
            elif used < prefix.used:
                self._files.touch((prefix.name, part), prefix.used)
        return sorted(missing, key=lambda one: one[0].used)


def _settings(engine: Engine) -> bytes:
    """16 bytes of all that must be alike for the bytes of a cache to mean the same; and of the key, which names are made with."""
    assert engine.prompt_key
    job, model = engine.job, engine.loaded.model
    pools = [(pool.window, list(pool.layers)) for pool in engine.blocks.pools]
    # What kernels keep in a block, and with which bits, is theirs to say.
    settings = (job.cache_type, job.wire, job.same_bits, quantize_of(job, model.file))
    said = (CACHE_BLOCK, *settings, pools, engine.cuts, kernels_identity())
    return blake2b(identity(model.file) + repr(said).encode(), digest_size=16, key=engine.prompt_key).digest()
