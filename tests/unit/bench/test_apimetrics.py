"""Counting writes in the API server's metrics."""

from __future__ import annotations

from rig.bench.apimetrics import describe, writes

EXPOSITION = """\
# HELP apiserver_request_total [STABLE] Counter of apiserver requests.
# TYPE apiserver_request_total counter
apiserver_request_total{code="201",group="perdure.dev",resource="botruntimes",subresource="",verb="POST"} 5
apiserver_request_total{code="200",group="perdure.dev",resource="botruntimes",subresource="status",verb="PATCH"} 6
apiserver_request_total{code="409",group="perdure.dev",resource="botruntimes",subresource="status",verb="PATCH"} 1
apiserver_request_total{code="200",group="perdure.dev",resource="botruntimes",subresource="",verb="LIST"} 9
apiserver_request_total{code="200",group="perdure.dev",resource="botruntimes",subresource="",verb="WATCH"} 2
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",subresource="",verb="PUT"} 40
apiserver_request_total{code="201",group="authentication.k8s.io",resource="tokenreviews",subresource="",verb="POST"} 3
# TYPE other_total counter
other_total{resource="botruntimes",subresource="",verb="POST"} 100
"""


def test_writes_are_counted_whatever_their_outcome_and_heartbeats_are_not() -> None:
    assert writes(EXPOSITION) == {"POST botruntimes": 5, "PATCH botruntimes/status": 7}


def test_a_description_gives_writes_per_start() -> None:
    assert describe(writes(EXPOSITION), 5) == "PATCH botruntimes/status 1.40, POST botruntimes 1.00"
