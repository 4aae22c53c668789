"""GET /metrics, in Prometheus' words: vLLM's names after `numatp:`, so that its boards work after one replacement."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from numatp.engine.counts import Counts

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
KIND = "text/plain; version=0.0.4; charset=utf-8"
GAUGES = {
    "num_requests_running": ("sequences in the Steps", lambda c: c.running),
    "num_requests_waiting": ("sequences that wait for a place or blocks", lambda c: c.waiting),
    "kv_cache_usage_perc": ("share of the cache's blocks that running sequences hold", lambda c: c.blocks_held / max(c.blocks, 1)),
    "kv_cache_blocks_cached": ("blocks that nobody holds and a prefix may find", lambda c: c.blocks_cached),
}
COUNTERS = {
    "steps": ("Steps done", lambda c: c.steps),
    "prompt_tokens": ("tokens of prompts", lambda c: c.prompt_tokens),
    "computed_tokens": ("tokens of prompts that were computed", lambda c: c.computed_tokens),
    "generation_tokens": ("tokens generated", lambda c: c.generated_tokens),
    "prefix_cache_queries": ("tokens looked for in the cache", lambda c: c.prompt_tokens),
    "prefix_cache_hits": ("tokens found there", lambda c: c.cached_tokens),
    "spec_decode_num_draft_tokens": ("tokens guessed and checked", lambda c: c.guessed_tokens),
    "spec_decode_num_accepted_tokens": ("guesses that were right", lambda c: c.right_guesses),
    "num_preemptions": ("times that a sequence was set back", lambda c: c.set_back),
}


class OfEngine:
    """What the engine counts, read when it is asked for."""

    def __init__(self, counts: Counts):
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for name, (text, value) in GAUGES.items():
            yield GaugeMetricFamily(f"numatp:{name}", text, value(self._counts))
        for name, (text, value) in COUNTERS.items():
            yield CounterMetricFamily(f"numatp:{name}", text, value(self._counts))


class Metrics:
    def __init__(self, counts: Counts):
        self._registry = CollectorRegistry()
        self._registry.register(OfEngine(counts))
        self.time_to_first_token = self._histogram("time_to_first_token", "from the request to its first token")
        self.inter_token_latency = self._histogram("inter_token_latency", "from token to token, the mean of each request")
        self.e2e_request_latency = self._histogram("e2e_request_latency", "from the request to its end")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"numatp:{name}_seconds", text, buckets=SECONDS, registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
