"""For whoever watches the server, restarts it or routes to it. The engine is not asked: it may hang."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from numatp.files.measured import read_bandwidth
from numatp.server.endpoint import Call
from numatp.server.metrics import KIND
from numatp.server.refusals import Refused, openai_error
from numatp.server.reply import Body, Reply


async def health(call: Call) -> Reply:
    state = call.state
    try:
        state.check_ready()
        if state.hangs:
            raise Refused(503, f"a Step has taken {state.llm.step_seconds:.0f} s: the engine hangs", code=503)
    except Refused as refused:
        status = "hanging" if state.phase == "ready" else state.phase
        return Body({"status": status, **openai_error(refused)}, 503, refused.headers)
    return Body({"status": "ok", "steps": state.llm.steps})


async def machine(call: Call) -> Reply:
    """For the page, which makes rates of what is counted."""
    call.state.check_ready()
    state, llm = call.state, call.state.llm
    roofline: Mapping[Any, float] = read_bandwidth()  # by node of this host
    reads: Counter[int | str] = Counter()
    for node, size in llm.stats.reads:
        reads[node] += size
    nodes = [
        {"node": node, "weight_bytes_per_step": size, "roofline": roofline.get(node)}  # bytes per second, where it was measured
        for node, size in reads.items()
    ]
    counts = asdict(llm.counts)
    return Body({
        "model": state.name, "version": state.version, "seconds": time.monotonic(), "places": state.places, "nodes": nodes,
        "pages": llm.stats.pages, **counts,
    })  # fmt: skip


async def metrics(call: Call) -> Reply:
    return Body(call.state.metrics.text(), kind=KIND)
