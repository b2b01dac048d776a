"""Every metric of Perdure in one place: what an operator can put on a dashboard or an alert.

A process makes one `Metrics` and hands it to its parts. The registry is its own: nothing is global, so two processes'
parts (or two tests) in one interpreter do not count into each other. No label takes a name or uid of a runtime: the
number of series does not grow with the number of runtimes. Naming: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds: what happens in memory."""
_EFFECT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: what an engine, a database or an API server does."""
_TRANSFER = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds: what depends on how much data there is."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics by field; labels in brackets. Seconds and bytes are plain, never milli or kilo.

    It is the reconciler's `Probe`, too: what the loop tells goes where it is counted.
    """

    registry: CollectorRegistry

    reconciles: Counter
    """[outcome] `healthy`, `waiting`, `failed`, `unsettled`."""
    reconcile_seconds: Histogram
    """[outcome]"""
    queue_depth: Gauge
    oldest_key_seconds: Gauge
    crashes: Counter
    """[place] What the one supervised loop caught; anything but 0 is a defect."""

    steps: Counter
    """[step, outcome] `done`, `failed`; `busy`: somebody else is at work on it."""
    step_seconds: Histogram
    """[step, outcome]"""
    operations: Counter
    """[op, outcome, code] The code is the `Reason` of a failure, empty otherwise."""

    health_events: Counter
    """[event]"""
    probes: Counter
    """[probe, result] `startup`, `readiness`, `liveness`; `success`, `failure`, `unknown`."""

    archive_bytes: Counter
    """[direction] `export`, `restore`."""
    archive_seconds: Histogram
    """[direction]"""

    status_patches: Counter
    """[code] HTTP status."""
    events_lost: Counter
    relist_differences: Counter
    """[kind, difference] `missed_add`, `missed_change`, `missed_delete`."""

    runtimes: Gauge
    """[kind, phase]"""
    orphans: Gauge
    strangers: Gauge
    frozen: Gauge
    """[reason]"""
    journal_unsent_rows: Gauge
    journal_refused_rows: Gauge
    loop_lag_seconds: Histogram

    def reconciled(self, outcome: str, seconds: float) -> None:
        """One runtime was brought as far as it gets now."""
        self.reconciles.labels(outcome).inc()
        self.reconcile_seconds.labels(outcome).observe(seconds)

    def stepped(self, step: str, outcome: str, seconds: float) -> None:
        """One step of a plan was carried out, or failed."""
        self.steps.labels(step, outcome).inc()
        self.step_seconds.labels(step, outcome).observe(seconds)

    def archived(self, direction: str, size: int, seconds: float) -> None:
        """An archive of `size` bytes was written (`export`) or put back (`restore`)."""
        self.archive_bytes.labels(direction).inc(size)
        self.archive_seconds.labels(direction).observe(seconds)

    def happened(self, event: str) -> None:
        """Something happened to a container, and was journalled."""
        self.health_events.labels(event).inc()

    def probed(self, probe: str, result: str) -> None:
        """One probe was asked once."""
        self.probes.labels(probe, result).inc()

    def finished(self, op: str, outcome: str, code: str) -> None:
        """One operation ended."""
        self.operations.labels(op, outcome, code).inc()


def new_metrics() -> Metrics:
    """A fresh set, with this process's CPU, memory and file descriptors beside it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(f"perdure_{name}", text, labels, registry=registry)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"perdure_{name}", text, labels, registry=registry)

    def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _EFFECT) -> Histogram:
        return Histogram(f"perdure_{name}", text, labels, buckets=buckets, registry=registry)

    return Metrics(
        registry=registry,
        reconciles=counter("reconciles_total", "Runtimes brought as far as they got, by how it ended.", "outcome"),
        reconcile_seconds=histogram(
            "reconcile_duration_seconds", "Time of one reconcile, all its rounds together.", "outcome"
        ),
        queue_depth=gauge("queue_depth", "Runtimes that are due and wait for a worker."),
        oldest_key_seconds=gauge("queue_oldest_key_age_seconds", "How long the runtime that waits longest has waited."),
        crashes=counter("crashes_total", "Unexpected errors that a supervised loop survived.", "place"),
        steps=counter("steps_total", "Steps carried out, by step and outcome.", "step", "outcome"),
        step_seconds=histogram("step_duration_seconds", "Time of one step.", "step", "outcome"),
        operations=counter(
            "operations_total", "Finished operations; code is the reason of a failure.", "op", "outcome", "code"
        ),
        health_events=counter(
            "health_events_total", "What happened to containers that nobody asked for, and their starts.", "event"
        ),
        probes=counter("probe_total", "Probes asked, by what came of it.", "probe", "result"),
        archive_bytes=counter("archive_bytes_total", "Compressed bytes written to or read from stores.", "direction"),
        archive_seconds=histogram(
            "archive_duration_seconds", "Time of one export or restore with its proof.", "direction", buckets=_TRANSFER
        ),
        status_patches=counter("status_patches_total", "Writes of /status, by HTTP status of the answer.", "code"),
        events_lost=counter("events_lost_total", "Kubernetes Events that could not be written."),
        relist_differences=counter(
            "relist_differences_total",
            "What a list found that the watch had not told; a steady rate means a bad watch.",
            "kind",
            "difference",
        ),
        runtimes=gauge("runtimes", "Runtimes known to this process, by phase.", "kind", "phase"),
        orphans=gauge("orphans", "Snapshots of ours on this node that no object claims; their data is kept."),
        strangers=gauge("strangers", "Things in Perdure's part of the engine without a label of this installation."),
        frozen=gauge("frozen", "1 while nothing destructive is done on this node until a person has looked.", "reason"),
        journal_unsent_rows=gauge(
            "journal_unsent_rows", "Rows in the node journal that the ledger has not confirmed yet."
        ),
        journal_refused_rows=gauge(
            "journal_refused_rows", "Rows that the ledger refuses as they are; the node journal keeps them."
        ),
        loop_lag_seconds=histogram(
            "event_loop_lag_seconds", "How much later than asked the event loop woke a task.", buckets=_FAST
        ),
    )
