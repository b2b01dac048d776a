"""What only the objects tell: which stopped runtimes are cleaned up next, and which wait for a person. For `perdure top`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from perdure.api.conditions import ConditionType
from perdure.api.names import Kind
from perdure.api.phases import Phase
from perdure.api.runtime import Runtime, parse_runtime
from perdure.kube import paths
from perdure.kube.access import ClusterSource, NoCluster
from perdure.kube.client import ApiClient, ApiRefused
from perdure.reconcile.ports.errors import ApiUnavailable

MOST = 10
"""Of each list; they may be long, and a page is short."""
PATIENCE_SECONDS = 10.0
_STUCK = frozenset({Phase.BLOCKED, Phase.FAILED})


@dataclass(frozen=True, slots=True)
class DueCleanup:
    kind: Kind
    namespace: str
    name: str
    at: str
    """RFC 3339, UTC."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """Only a person's decision, or an edit, helps."""

    kind: Kind
    namespace: str
    name: str
    phase: str
    reason: str
    since: str
    """RFC 3339, UTC; empty: not known."""


@dataclass(frozen=True, slots=True)
class Prospects:
    """`due` and `stuck`: the first that come, and those that wait longest. `problem`: why nothing is known."""

    due: tuple[DueCleanup, ...] = ()
    due_count: int = 0
    stuck: tuple[Stuck, ...] = ()
    stuck_count: int = 0
    problem: str = ""


async def read_prospects(kubeconfig: Path | None) -> Prospects:
    """Never raises for a cluster that is away or says no: the ledger's part is worth showing without it."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), ApiClient(ClusterSource(kubeconfig)) as api:
            return await _read(api)
    except (NoCluster, ApiUnavailable, ApiRefused) as error:
        return Prospects(problem=str(error))
    except TimeoutError:
        return Prospects(problem=f"the API server did not list everything within {PATIENCE_SECONDS:g} s")


async def _read(api: ApiClient) -> Prospects:
    """Page by page: only what is shown is kept."""
    due: list[DueCleanup] = []
    stuck: list[Stuck] = []
    due_count = stuck_count = 0
    for kind in Kind:
        async for page in api.pages(paths.runtimes(kind), f"listing {kind.value}s"):
            found = tuple(_parsed(page))
            expiring, waiting = [*map(_due, found)], [*map(_stuck, found)]
            due_count += sum(1 for one in expiring if one is not None)
            stuck_count += sum(1 for other in waiting if other is not None)
            due = heapq.nsmallest(MOST, [*due, *filter(None, expiring)], key=lambda it: it.at)
            stuck = heapq.nsmallest(MOST, [*stuck, *filter(None, waiting)], key=lambda it: it.since)
    return Prospects(tuple(due), due_count, tuple(stuck), stuck_count)


def _parsed(page: Iterable[dict[str, Any]]) -> Iterable[Runtime]:
    for raw in page:
        try:
            yield parse_runtime(raw)
        except (KeyError, msgspec.ValidationError):
            continue  # it is no runtime: nothing can be said of it


def _due(runtime: Runtime) -> DueCleanup | None:
    at = runtime.status.expires_at
    return DueCleanup(runtime.kind, runtime.namespace, runtime.name, at) if at else None


def _stuck(runtime: Runtime) -> Stuck | None:
    if runtime.status.phase not in _STUCK:
        return None
    ready = next((it for it in runtime.status.conditions if it.type == ConditionType.READY), None)
    reason, since = (ready.reason, ready.last_transition_time) if ready is not None else ("", "")
    return Stuck(runtime.kind, runtime.namespace, runtime.name, runtime.status.phase or "", reason, since)
