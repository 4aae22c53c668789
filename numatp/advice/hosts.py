"""What a model would be on several hosts that a link joins: alone on one, cut over all, or with its layers dealt to them.

Alone and cut: the formula of engine/draft.py. Layers dealt to hosts (pipeline), each cut within its host: a token passes through
all hosts one after another, so they read together what one host alone would; between them goes one row of activations, and the Step
and the logits go as always:

    seconds = those of one host alone + (hosts - 1) x those of a row on the link + those of the Step and the logits
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from numatp.engine.draft import Draft, Hosts, Prediction, fits, message_bytes
from numatp.engine.job import Job
from numatp.engine.layout import Model
from numatp.engine.pipeline import layer_bytes
from numatp.errors import UserError
from numatp.models.spec import Spec
from numatp.weights.rules import Slice
from numatp.weights.stages import deal


@dataclass(frozen=True)
class Pipeline:
    """Rates in tokens per second; None where the bandwidth is unknown."""

    layers: tuple[tuple[int, int], ...]  # (first, behind the last) of each host
    fits: bool
    tokens_per_second: float | None  # of one stream, at an empty context
    tokens_per_second_full: float | None  # at a full one
    crossing_seconds: float  # between hosts per token: a row from each to the next, the Step, logits


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
    pipeline: Pipeline | None  # None where its layers cannot be dealt to so many
    recommended: str | None  # alone, cut or pipeline; None where one host is enough and the bandwidth unknown


def compare(model: Model, hosts: Hosts, alone: Draft, cut: Draft, job: Job, slices: Sequence[Slice]) -> HostsPlan:
    """alone: on one host, as it is fastest there. slices: of the whole model."""
    spec, link = model.spec, hosts.link
    size = message_bytes(spec)
    pipeline = _pipeline(spec, hosts, alone, job, slices)
    ways: dict[str, Prediction | Pipeline] = {"alone": alone.prediction, "cut": cut.prediction}
    if pipeline:
        ways["pipeline"] = pipeline
    rates = {way: predicted.tokens_per_second for way, predicted in ways.items()}
    fitting = {way: predicted.fits for way, predicted in ways.items()}
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


def _pipeline(spec: Spec, hosts: Hosts, alone: Draft, job: Job, slices: Sequence[Slice]) -> Pipeline | None:
    """None where layers cannot be dealt to so many hosts."""
    held = layer_bytes(spec, job, alone.layouts[0].pools, slices)
    try:
        stages = deal(held, [1.0] * hosts.count, [layer.needs for layer in spec.layers])
    except UserError:
        return None
    part = max(sum(held[layer] for layer in stage) for stage in stages) / max(sum(held), 1)
    rooms, seats = [], [len(alone.ranks)] * hosts.count
    for room in alone.rooms:
        ranks = [rank for rank in alone.ranks if alone.holder(rank.node) == room.node]
        elsewhere = sum((rank.weight_bytes + rank.cache_bytes) * (1 - part) for rank in ranks)
        arriving = [
            sum(alone.sections.between_hosts(seats, host, rank.rank, True) for rank in ranks) for host in range(hosts.count)
        ]
        rooms.append(replace(room, needed_bytes=room.needed_bytes - int(elsewhere) + max(arriving)))
    one, link = alone.prediction, hosts.link
    told = link.seconds(alone.sections.step.num_bytes, hosts.count)
    passed = message_bytes(spec) * spec.between // spec.sizes.width
    between = (hosts.count - 1) * link.seconds(passed, 2) + told + link.seconds(4 * spec.sizes.vocab, 2)
    empty, full = (1 / (1 / rate + between) if rate else None for rate in (one.tokens_per_second, one.tokens_per_second_full))
    return Pipeline(tuple((stage.start, stage.stop) for stage in stages), fits(rooms, alone.limit), empty, full, between)


def describe(plan: HostsPlan) -> list[str]:
    """Lines for people."""
    over = f"{plan.hosts} hosts like this one, joined by {plan.link}"
    cost = f"{plan.exchanges} exchanges of {plan.message_bytes / 1e3:.1f} kB, {1e6 * plan.exchange_seconds:.1f} us each"
    lines = [
        f"{over}: cut over all, a token has {cost}: {1e3 * plan.crossing_seconds:.2f} ms on the link; "
        f"each host sends {plan.sent_bytes / 1e6:.2f} MB",
        f"  alone, on one host: {_rate(plan.alone)}",
        f"  cut over {plan.hosts} hosts: {_rate(plan.cut)}",
        f"  pipeline of {plan.hosts} hosts{_described(plan.pipeline)}",
    ]
    words = {
        "alone": "one host alone", "cut": "the model cut over all hosts",
        "pipeline": "a pipeline of hosts: --pipeline",
        None: "nothing, as the bandwidth is unknown: run numatp bandwidth",
    }[plan.recommended]  # fmt: skip
    return [*lines, f"recommended: {words}"]


def _described(pipeline: Pipeline | None) -> str:
    if not pipeline:
        return ": not with this model, whose layers cannot be dealt to so many"
    layers = ", ".join(f"{start}-{stop - 1}" for start, stop in pipeline.layers)
    return f", layers {layers}: {_rate(pipeline)}"


def _rate(predicted: Prediction | Pipeline) -> str:
    empty, full = predicted.tokens_per_second, predicted.tokens_per_second_full
    speed = "unknown" if empty is None or full is None else f"{empty:.1f} and {full:.1f} tok/s"
    return speed + ("" if predicted.fits else ", but does not fit")
