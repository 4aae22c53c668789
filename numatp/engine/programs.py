"""Step time: a model's forward pass is run once, as Python, and leaves the flat list of ops that every Step then runs.

Load time is engine/load.py: by now every weight, cache and shared buffer has its address.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

from numatp.engine.load import Loaded
from numatp.engine.team import Team
from numatp.engine.window import Window
from numatp.kernels.copy import copy_slots
from numatp.program.builder import Builder, Program, unset_memory
from numatp.program.halves import in_turns
from numatp.program.ops import Ops
from numatp.program.recorder import NoLogits, Site
from numatp.program.values import Access, Buffer
from numatp.ranks.world import World

ONE_ROW, MANY_ROWS, SCORES, AUDIT, COPIES = 0, 1, 2, 3, 4  # the programs, by index; AUDIT is engine/audit.py's
MODEL_PROGRAMS = ("one row", "many rows", "scores")


@dataclass(frozen=True)
class Recorded:
    program: Program
    digests: list[str]  # of what the ranks compare their bits, in the order of Window.digests


def record(world: World, loaded: Loaded, window: Window, team: Team, check_ranks: bool) -> tuple[list[Recorded], Program | None]:
    """The programs ONE_ROW, MANY_ROWS and SCORES; and of several hosts one for a Step of many rows in two halves."""
    seat = world.host.seat
    site = Site(
        rank=seat if window.passages else world.rank, seat=seat, seats=world.host.seats, threads=team.threads, lanes=window.lanes,
        team=team.handle, width=loaded.spec.sizes.width, segments=loaded.layout.segments, step=window.step,
        partials=window.partials, logits=window.logits.ctypes.data, logit_stride=window.logits.strides[0],
        scores=window.scores[seat].ctypes.data, tops=window.tops[seat].ctypes.data,
        digests=window.digests[seat].ctypes.data if check_ranks else 0, wires=window.wires, passages=window.passages,
    )  # fmt: skip
    sites = [replace(site, wires=window.one_row_wires) if kind == ONE_ROW else site for kind in range(len(MODEL_PROGRAMS))]
    recorded = [record_one(site, loaded, kind) for kind, site in enumerate(sites)]
    for one in recorded:
        one.program.told = window.told
        one.program.returned = window.returned_logits
    recorded[SCORES].program.returned = window.returned_scores
    return recorded, _record_halves(sites[MANY_ROWS], loaded, window)


def _record_halves(site: Site, loaded: Loaded, window: Window) -> Program | None:
    """What MANY_ROWS computes, of a Step in two halves; None where no sum travels."""
    if not window.ahead:
        return None
    partials, wires = window.ahead.sums or (site.partials, site.wires)
    second = replace(site, half=1, digests=0)
    first = replace(second, half=0, step=window.ahead.step, partials=partials, wires=wires)
    program = in_turns("two halves", *(record_one(half, loaded, MANY_ROWS).program for half in (first, second)))
    program.told, program.returned = window.ahead.told + window.told, window.returned_rows
    return program


def record_one(site: Site, loaded: Loaded, kind: int) -> Recorded:
    """ONE_ROW, MANY_ROWS or SCORES, also of a rank that is not there (engine/rehearsal.py)."""
    model, layout = loaded.model, loaded.layout
    ops = Ops(MODEL_PROGRAMS[kind], site, 1 if kind == ONE_ROW else layout.max_rows, scored=kind == SCORES)
    with suppress(NoLogits):
        model.architecture.forward(ops, model.spec, layout.split, loaded.weights, layout.cache.at(loaded.cache_at))
    return Recorded(ops.finish(), ops.digests)


def record_copies(loaded: Loaded, window: Window, team: Team) -> Program:
    """COPIES: states of recurrent layers, from slot to slot, as the Step says."""
    cache, step = loaded.layout.cache, window.step
    builder = Builder("copies", team.threads)
    states = Access(Buffer("states", address=loaded.cache_at + cache.slots_at))
    builder.add(
        copy_slots, [states], [states],
        states=loaded.cache_at + cache.slots_at, slot_bytes=cache.slot_bytes, copies=step.copies.ctypes.data,
        num_copies=step.num_copies.ctypes.data,
    )  # fmt: skip
    program = builder.finish([]).place()
    program.told = window.told
    return program


def activation_bytes(programs: list[Program]) -> int:
    """Of the one piece of memory that all programs use, because only one runs at a time."""
    return max(program.activation_bytes for program in programs)


def give_memory(programs: list[Program]) -> None:
    memory = unset_memory(activation_bytes(programs))
    for program in programs:
        program.place(memory)
