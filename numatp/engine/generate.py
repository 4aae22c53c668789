"""One sequence from prompt to last token, on rank 0."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Event

from numatp.engine.engine import Engine
from numatp.errors import UserError


@dataclass(frozen=True)
class Timing:
    """What a generation took; a token's own decode is the Step that was fed with it."""

    prompt_tokens: int
    prompt_seconds: float
    decoded_tokens: int
    decode_seconds: float


def generate(
    engine: Engine, prompt: list[int], num_tokens: int, stop_ids: Collection[int], emit: Callable[[int], None], cancel: Event
) -> Timing:
    """Emits up to num_tokens greedy tokens, ending before a stop id, at a full context or between Steps once cancelled."""
    room = engine.context - len(prompt)
    if not prompt:
        raise UserError("the prompt is empty: give some text with -p")
    if room < 1:
        raise UserError(f"the prompt has {len(prompt)} tokens, the context {engine.context}: a shorter prompt or a larger -c")
    began = time.perf_counter()
    for start in range(0, len(prompt), engine.job.max_rows):
        if cancel.is_set():
            break
        rows = prompt[start : start + engine.job.max_rows]
        engine.run_rows(rows, start, want_logits=start + len(rows) == len(prompt))
    prompted = time.perf_counter()
    decoded = 0
    for position in range(len(prompt), len(prompt) + min(num_tokens, room)):
        token = engine.greedy_token()
        if cancel.is_set() or token in stop_ids:
            break
        emit(token)
        if position + 1 == len(prompt) + min(num_tokens, room):
            break
        engine.run_rows([token], position, want_logits=True)
        decoded += 1
    return Timing(len(prompt), prompted - began, decoded, time.perf_counter() - prompted)
