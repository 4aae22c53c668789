"""A service whose ranks can measure: their engines have instruments (measure/instruments.py)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from numatp.engine.job import Job
from numatp.engine.service import Service

if TYPE_CHECKING:
    from numatp.measure.instruments import MeasuringEngine


class MeasuringService(Service):
    WORKER = "numatp.measure.worker"

    def engine(self) -> "MeasuringEngine":
        return cast("MeasuringEngine", super().engine())

    def _open_engine(self, job: Job, progress: Callable[[int, int], None]) -> "MeasuringEngine":
        from numatp.measure.instruments import MeasuringEngine

        return MeasuringEngine(job, self.started, progress)
