"""Events: what a person reads under `kubectl describe`. Best effort: an Event that cannot be written is counted.

The same thing said again about the same object raises the count of the Event that is there, as kubelet and
controllers do (client-go tools/record/events_cache.go), so a runtime that fails every minute has one Event.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from perdure.api.names import API_VERSION
from perdure.api.runtime import Runtime
from perdure.kube import clock, paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.reconcile.ports.errors import ApiUnavailable

REMEMBERED = 1000
"""Events that can still be counted up; older ones are written anew."""
_MESSAGE_LIMIT = 1024
"""Characters; the API server refuses more (pkg/apis/core/validation/events.go)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Said:
    uid: str
    reason: str
    message: str
    warning: bool


@dataclass(slots=True)
class _Written:
    name: str
    count: int


class EventRecorder:
    """`component` is who says it (`perdure-agent`), `host` where. `count_lost` is called for each Event given up."""

    def __init__(
        self, client: ApiClient, component: str, host: str, count_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._count_lost = count_lost
        self._written: OrderedDict[_Said, _Written] = OrderedDict()

    async def emit(self, runtime: Runtime, *, reason: str, message: str, warning: bool) -> None:
        """Write one Event, or count one up. Never raises for an API server that is away or refuses."""
        said = _Said(runtime.uid, reason, message[:_MESSAGE_LIMIT], warning)
        try:
            if not await self._count_up(runtime, said):
                await self._create(runtime, said)
        except (ApiUnavailable, ApiRefused) as error:
            self._count_lost()
            log.info("event_lost", runtime=runtime.key, uid=runtime.uid, reason=reason, error=str(error))

    async def _count_up(self, runtime: Runtime, said: _Said) -> bool:
        known = self._written.get(said)
        if known is None:
            return False
        path = paths.event(runtime.namespace, known.name)
        body: Json = {"count": known.count + 1, "lastTimestamp": clock.now()}
        try:
            await self._client.merge_patch(path, f"counting up an Event of {runtime.key}", body)
        except ApiRefused as refused:
            if refused.code != 404:  # Events expire after an hour
                raise
            del self._written[said]
            return False
        known.count += 1
        self._written.move_to_end(said)
        return True

    async def _create(self, runtime: Runtime, said: _Said) -> None:
        name = f"{runtime.name}.{secrets.token_hex(8)}"
        now = clock.now()
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": runtime.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": runtime.kind.value,
                "namespace": runtime.namespace,
                "name": runtime.name,
                "uid": runtime.uid,
                "resourceVersion": runtime.resource_version,
            },
            "type": "Warning" if said.warning else "Normal",
            "reason": said.reason,
            "message": said.message,
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "reportingInstance": self._host,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._client.post(paths.events(runtime.namespace), f"writing an Event of {runtime.key}", body)
        self._written[said] = _Written(name, 1)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
