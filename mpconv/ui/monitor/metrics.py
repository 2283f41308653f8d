"""Facts of jobs as Prometheus' text. docs/metrics.md says what each means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from mpconv.ui.monitor.facts import Job

CONTENT_TYPE = CONTENT_TYPE_LATEST
STATES = ("waiting", "opening", "running", "finished", "failed", "stopped")

_JOB_GAUGES = {
    "size_bytes": "What is to be done in all.",
    "done_bytes": "Of that, what is complete; it falls when what a lost worker wrote is done again.",
    "done_zero_bytes": "Of what is complete, zeros.",
    "durable_bytes": "Of what is complete, what a flush has covered.",
    "lost_bytes": "Could not be read and became zeros (--salvage).",
    "leases": "Leases that workers hold.",
    "leases_in_doubt": "Of these, leases that ran out while their write may still land.",
    "targets": "How many targets there are.",
    "targets_dropped": "Those of them that failed.",
    "differs": "1 when a comparison found that the images differ.",
}
_JOB_COUNTERS = {
    "read_bytes": "Read of the source by all workers, twice where it was read again.",
    "written_bytes": "Data written by all workers, to each target; zeros are not counted.",
    "zero_bytes": "Zeros, whether they were found, made on the target, or there already.",
    "troubles": "A server did not answer a worker, or answered again.",
    "restarts": "A worker lost its connection to the target and began anew.",
    "worker_deaths": "A worker ended, or was cut off, before its work was done.",
}
_WORKER_GAUGES = {
    "leases": "Leases that the worker holds.",
    "leases_in_doubt": "Of these, leases that ran out while their write may still land.",
    "up": "1 while the worker takes part, 0 once it is gone or lost.",
}
_WORKER_COUNTERS = {
    "read_bytes": "Read of the source.",
    "written_bytes": "Data written, to each target.",
    "zero_bytes": "Zeros that it found or made.",
    "troubles": "A server did not answer it, or answered again.",
    "restarts": "It lost its connection to the target and began anew.",
}
_FIELDS = {
    "size_bytes": "size", "done_bytes": "done", "done_zero_bytes": "done_zero", "durable_bytes": "durable",
    "lost_bytes": "lost", "targets_dropped": "dropped", "read_bytes": "read", "written_bytes": "written",
    "zero_bytes": "zero", "worker_deaths": "deaths", "leases_in_doubt": "in_doubt",
}  # fmt: skip
"""Where a fact has another name than its metric."""


class _Facts(Collector):
    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        yield from self._of_jobs(GaugeMetricFamily, _JOB_GAUGES)
        yield from self._of_jobs(CounterMetricFamily, _JOB_COUNTERS)
        yield from self._of_workers(GaugeMetricFamily, _WORKER_GAUGES)
        yield from self._of_workers(CounterMetricFamily, _WORKER_COUNTERS)
        state = GaugeMetricFamily("mpconv_job_state", "1 for the state that the job is in.", labels=["job", "state"])
        for job in self._jobs:
            for name in STATES:
                state.add_metric([job.name, name], float(job.state == name))
        yield state

    def _of_jobs(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], told: dict[str, str]
    ) -> Iterable[Metric]:
        for name, text in told.items():
            family = kind(f"mpconv_job_{name}", text, labels=["job"])
            for job in self._jobs:
                family.add_metric([job.name], float(getattr(job, _FIELDS.get(name, name))))
            yield family

    def _of_workers(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], told: dict[str, str]
    ) -> Iterable[Metric]:
        for name, text in told.items():
            family = kind(f"mpconv_worker_{name}", text, labels=["job", "worker"])
            for job in self._jobs:
                for worker in job.workers:
                    if name == "up":
                        value = float(worker.state not in {"gone", "lost"})
                    else:
                        value = float(getattr(worker, _FIELDS.get(name, name)))
                    family.add_metric([job.name, worker.name], value)
            yield family


def exposition(jobs: Sequence[Job]) -> bytes:
    """All of it, as it is now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Facts(jobs))
    return generate_latest(registry)
