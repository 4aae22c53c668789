"""What a model would be on several hosts that a link joins: alone on one, cut over all, or with its layers dealt to them.

Alone and cut: the formula of engine/draft.py. Layers dealt to hosts (pipeline), each cut within its host: a token of one stream
passes through all hosts one after another, so they read together what one host alone would; between them goes one row of
activations, and the logits come back:

    seconds of one stream = those of one host alone + (hosts - 1) x those of a row on the link + those of the logits

As many streams as hosts keep all of them busy, and then the host whose layers are largest sets the pace.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from numatp.engine.draft import Draft, Hosts, Prediction, fits, message_bytes, read_per_token
from numatp.engine.layout import Model
from numatp.weights.rules import Slice


@dataclass(frozen=True)
class Pipeline:
    """Rates in tokens per second; None where the bandwidth is unknown."""

    layers: tuple[tuple[int, int], ...]  # (first, behind the last) of each host
    fits: bool
    tokens_per_second: float | None  # of one stream, at an empty context
    tokens_per_second_full: float | None  # at a full one
    tokens_per_second_streams: float | None  # of all streams, as many as hosts, at an empty context


@dataclass(frozen=True)
class HostsPlan:
    hosts: int
    link: str
    link_rate: float  # bytes per second
    message_bytes: int  # of an exchange, from each host to each other
    exchanges: int  # between hosts per token, where the model is cut over them
    exchange_seconds: float  # of one
    crossing_seconds: float  # between hosts per token: exchanges, the Step, logits
    sent_bytes: int  # by each host per token
    read_bytes: tuple[int, ...]  # of weights by each host per token, where the model is cut over them
    alone: Prediction
    cut: Prediction
    pipeline: Pipeline
    recommended: str | None  # alone, cut or pipeline; None where one host is enough and the bandwidth unknown


def compare(model: Model, hosts: Hosts, alone: Draft, cut: Draft, slices: list[Slice]) -> HostsPlan:
    """alone: on one host, as it is fastest there. slices: of the whole model."""
    spec, link = model.spec, hosts.link
    size = message_bytes(spec)
    pipeline = _pipeline(model, hosts, alone, slices)
    rates = {
        "alone": alone.prediction.tokens_per_second, "cut": cut.prediction.tokens_per_second, "pipeline": pipeline.tokens_per_second
    }  # fmt: skip
    fitting = {"alone": alone.prediction.fits, "cut": cut.prediction.fits, "pipeline": pipeline.fits}
    reads: Counter[int] = Counter()
    for rank in cut.ranks:
        reads[rank.host] += rank.read_bytes
    return HostsPlan(
        hosts=hosts.count, link=link.name, link_rate=link.rate, message_bytes=size, exchanges=spec.exchanges,
        exchange_seconds=link.seconds(size, hosts.count), crossing_seconds=cut.crossing,
        sent_bytes=spec.exchanges * size * (hosts.count - 1), read_bytes=tuple(reads[host] for host in range(hosts.count)),
        alone=alone.prediction, cut=cut.prediction, pipeline=pipeline, recommended=_recommended(rates, fitting),
    )  # fmt: skip


def _recommended(rates: Mapping[str, float | None], fitting: Mapping[str, bool]) -> str | None:
    """The fastest that fits, of equals the simplest; where nothing fits the cut, which needs the least memory of a host."""
    if not any(fitting.values()):
        return "cut"
    if fitting["alone"] and rates["alone"] is None:
        return None
    return max(rates, key=lambda way: (fitting[way], rates[way] or 0.0))


def _pipeline(model: Model, hosts: Hosts, alone: Draft, slices: list[Slice]) -> Pipeline:
    num_layers = len(model.spec.layers)
    held, read = [0] * num_layers, [0] * num_layers  # bytes of each layer; of the last with what stands behind it
    for piece in slices:
        numbered = re.match(r"blk\.(\d+)\.", piece.info.name)
        layer = min(int(numbered[1]), num_layers - 1) if numbered else 0 if piece.rule.kind == "embedding" else num_layers - 1
        held[layer] += piece.num_bytes
        read[layer] += read_per_token(piece, model.spec)
    bounds = _deal(read, hosts.count)
    stages = list(pairwise(bounds))
    pace = max(sum(read[start:stop]) for start, stop in stages) / max(sum(read), 1)
    part = max(sum(held[start:stop]) for start, stop in stages) / max(sum(held), 1)
    cached = max(stop - start for start, stop in stages) / num_layers
    rooms = []
    for room in alone.rooms:
        ranks = [rank for rank in alone.ranks if alone.holder(rank.node) == room.node]
        elsewhere = sum(rank.weight_bytes * (1 - part) + rank.cache_bytes * (1 - cached) for rank in ranks)
        rooms.append(replace(room, needed_bytes=room.needed_bytes - int(elsewhere)))
    one, row_bytes = alone.prediction, message_bytes(model.spec)
    between = (hosts.count - 1) * hosts.link.seconds(row_bytes, 2) + hosts.link.seconds(4 * model.spec.sizes.vocab, 2)
    empty, full = (1 / (1 / rate + between) if rate else None for rate in (one.tokens_per_second, one.tokens_per_second_full))
    together = 1 / (pace / one.tokens_per_second + hosts.link.seconds(row_bytes, 2)) if one.tokens_per_second else None
    return Pipeline(tuple(stages), fits(rooms, alone.limit), empty, full, together)


def _deal(sizes: list[int], parts: int) -> list[int]:
    """Where `parts` runs of layers start, and the end: of all such cuts one whose largest run is smallest."""
    least = [0.0, *[inf] * len(sizes)]  # of the largest run, when the first i layers are dealt to the parts so far
    cuts = list[list[int]]()
    before = [0]
    for size in sizes:
        before.append(before[-1] + size)
    for _ in range(parts):
        chosen, following = [0] * (len(sizes) + 1), [inf] * (len(sizes) + 1)
        for stop in range(len(sizes) + 1):
            for start in range(stop + 1):
                largest = max(least[start], before[stop] - before[start])
                if largest < following[stop]:
                    chosen[stop], following[stop] = start, largest
        cuts.append(chosen)
        least = following
    bounds = [len(sizes)]
    for chosen in reversed(cuts):
        bounds.append(chosen[bounds[-1]])
    return bounds[::-1]


def describe(plan: HostsPlan) -> list[str]:
    """Lines for people."""
    over = f"{plan.hosts} hosts like this one, joined by {plan.link}"
    cost = f"{plan.exchanges} exchanges of {plan.message_bytes / 1e3:.1f} kB, {1e6 * plan.exchange_seconds:.1f} us each"
    p = plan.pipeline
    layers = ", ".join(f"{start}-{stop - 1}" for start, stop in p.layers)
    streams = (
        "" if p.tokens_per_second_streams is None else f"; {plan.hosts} streams {p.tokens_per_second_streams:.1f} tok/s in all"
    )
    lines = [
        f"{over}: cut over all, a token has {cost}: {1e3 * plan.crossing_seconds:.2f} ms on the link; "
        f"each host sends {plan.sent_bytes / 1e6:.2f} MB",
        f"  alone, on one host: {_rate(plan.alone)}",
        f"  cut over {plan.hosts} hosts: {_rate(plan.cut)}",
        f"  pipeline of {plan.hosts} hosts, layers {layers}: {_rate(p)}{streams}",
    ]
    words = {
        "alone": "one host alone", "cut": "the model cut over all hosts",
        "pipeline": "a pipeline of hosts, which numatp predicts but cannot run yet",
        None: "nothing, as the bandwidth is unknown: run numatp bandwidth",
    }[plan.recommended]  # fmt: skip
    return [*lines, f"recommended: {words}"]


def _rate(predicted: Prediction | Pipeline) -> str:
    empty, full = predicted.tokens_per_second, predicted.tokens_per_second_full
    speed = "unknown" if empty is None or full is None else f"{empty:.1f} and {full:.1f} tok/s"
    return speed + ("" if predicted.fits else ", but does not fit")
