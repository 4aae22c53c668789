"""`numatp bench --rehearse THREADS`: how a token's work divides among so many threads per rank, on a machine with fewer cores."""

import json
from typing import Any

from numatp.cli.options import note
from numatp.cli.progress import Progress
from numatp.cli.session import ended
from numatp.engine.job import Job
from numatp.errors import UserError
from numatp.measure.service import MeasuringService

OUTPUTS = ("md", "json")


def run(job: Job, ranks: int | None, output: str) -> int:
    """job: with the threads and `rehearse`."""
    if output not in OUTPUTS:
        raise UserError(f"--rehearse has the outputs {' and '.join(OUTPUTS)}, not {output}")
    with Progress("load") as progress:
        service = MeasuringService(job, ranks, progress.update)
        if service.rank:
            service.wait()
            return 0
    with ended(service.abort):
        service.engine()
        from numatp.measure.division import rehearse  # loads numpy

        note(service.started.line)
        found = service.call(rehearse)
        service.close()
    print(json.dumps(found) if output == "json" else "\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for number, rank in enumerate(found["ranks"]):
        lines += [
            f"rank {number}, {found['threads']} threads: between {rank['barriers']} barriers the busiest threads of a token work "
            f"{rank['busiest_us']:.1f} us, {rank['imbalance_percent']:.1f} % more than the mean (least of {found['steps']} Steps)",
            "",
            "| op | count | mean us | busiest us |",
            "| -- | ----: | ------: | ---------: |",
        ]
        for kind in rank["kinds"]:
            name = f"{kind['op']} {kind['weights']}".strip()
            lines.append(f"| {name} | {kind['count']} | {kind['mean_us']:.1f} | {kind['busiest_us']:.1f} |")
        lines.append("")
    lines.append(
        f"of the weights the busiest reads {found['weights_imbalance_percent']:.1f} % more than the mean. Not seen: what so many "
        "cores share, and what their barriers cost (numatp plan)"
    )
    return lines
