"""What the parts tell is counted under names that a dashboard can rely on."""

from __future__ import annotations

from dataclasses import fields

from perdure.reconcile.probe import Probe
from perdure.telemetry.metrics import Metrics, new_metrics


def test_what_the_loop_tells_is_counted() -> None:
    metrics = new_metrics()
    probe: Probe = metrics
    probe.reconciled("failed", 0.2)
    probe.stepped("StartTask", "done", 0.07)
    probe.finished("start", "failure", "ImageNotFound")
    value = metrics.registry.get_sample_value
    assert value("perdure_reconciles_total", {"outcome": "failed"}) == 1
    assert value("perdure_reconcile_duration_seconds_sum", {"outcome": "failed"}) == 0.2
    done = {"step": "StartTask", "outcome": "done"}
    assert value("perdure_steps_total", done) == 1
    assert value("perdure_step_duration_seconds_bucket", {**done, "le": "0.1"}) == 1
    assert value("perdure_step_duration_seconds_bucket", {**done, "le": "0.05"}) == 0
    operation = {"op": "start", "outcome": "failure", "code": "ImageNotFound"}
    assert value("perdure_operations_total", operation) == 1


def test_every_metric_has_help_and_a_unit_where_it_is_an_amount() -> None:
    families = [family for family in new_metrics().registry.collect() if family.name.startswith("perdure_")]
    assert len(families) == len(fields(Metrics)) - 1
    for family in families:
        assert family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_no_series_grows_with_the_number_of_runtimes() -> None:
    metrics = new_metrics()
    labels = {
        name
        for field in fields(Metrics)
        if field.name != "registry"
        for name in getattr(metrics, field.name)._labelnames
    }
    assert labels == {
        "outcome",
        "place",
        "step",
        "op",
        "code",
        "event",
        "probe",
        "result",
        "direction",
        "kind",
        "difference",
        "phase",
        "reason",
    }
