"""How kopf is set up when it is used for watching alone. Called by the intake; measured with kopf 1.45."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
import kopf

from perdure.api.names import GROUP, VERSION
from perdure.kube.access import ClusterSource, NoCluster, load_access
from perdure.kube.connections import Connections

CONNECTIONS = 16
"""kopf's own default has no limit."""


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers nothing of what was handled: no annotation on anybody's object, and no deep copies per event."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        return None


class NoProgress(kopf.ProgressStorage):
    """The same for the progress of handlers."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


def settings_for(role: str, *, labels: Mapping[str, str], fields: Mapping[str, str]) -> kopf.OperatorSettings:
    """`labels` and `fields`: selectors by plural. `role` must differ between processes that see the same objects."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no watch of all CRDs
    settings.peering.standalone = True
    settings.posting.enabled = False  # Events are ours, aggregated
    # kopf takes the finalizer of this name off every object that it sees: it must never be ours, nor another role's.
    settings.persistence.finalizer = f"{GROUP}/kopf-{role}"
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.persistence.consistency_timeout = 0
    settings.process.ultimate_exiting_timeout = None  # no SIGKILL to ourselves
    settings.queueing.worker_limit = None  # a limit would hold slots of idle workers, not of busy ones
    settings.queueing.idle_timeout = 0.5
    settings.queueing.exit_timeout = 5.0
    settings.queueing.error_delays = (0.2, 0.5, 1, 2, 5)
    settings.watching.chunk_size = 500
    settings.watching.initial_streaming = False  # loses objects when the connection breaks in the middle
    settings.watching.inactivity_timeout = 70  # bookmarks come every minute
    settings.watching.server_timeout = 290
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 3
    settings.networking.error_backoffs = (0.2, 0.5, 1, 1, 2, 3, 5)
    for plural, selector in labels.items():
        settings.watching.label_selectors[GROUP, VERSION, plural] = selector
    for plural, selector in fields.items():
        settings.watching.field_selectors[GROUP, VERSION, plural] = selector
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # otherwise a line per object and event
    return settings


async def log_in(source: ClusterSource, connections: Connections) -> kopf.AiohttpSession:
    """A session for kopf, read anew each time that the API server refuses the last one. Its sockets are `connections`'."""
    try:
        access = await load_access(source)
    except NoCluster as error:
        raise kopf.TemporaryError(str(error), delay=5) from error
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=access.tls(), socket_factory=connections.socket),
        headers={"User-Agent": "perdure-intake", **await access.headers()},
        proxy=access.proxy,
    )
    return kopf.AiohttpSession(server=access.server, aiohttp_session=session)
