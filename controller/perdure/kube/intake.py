"""What happens in the cluster, as it happens: kopf's watches, reduced to `put` and `deleted` of typed objects.

kopf is used for its watches alone. The handlers do no I/O and change nothing; every promise is kept by the loop behind
the sink, and by `resync` for what a watch loses. Three properties of kopf 1.45 decide how it is run here:

- At its end it cancels every task of its event loop that was created after its start (kopf/_core/reactor/running.py,
  `run_tasks`), and in the main thread it installs signal handlers. So each run gets a thread and a loop of its own.
- It ends by itself on a list that is answered with 410, 403 or 5xx. So it is run again, with a growing pause.
- It waits for ever, in silence, for a CRD that is not there. So the CRDs are looked for before each run.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import kopf
import structlog

from perdure.api.names import ARCHIVE_PLURAL, GROUP, NODE_PLURAL, VERSION, Kind, NodeName
from perdure.api.node import RuntimeNode, parse_node
from perdure.api.runtime import Runtime, parse_runtime
from perdure.kube.access import ClusterSource
from perdure.kube.archives import ArchiveObject, parse_archive
from perdure.kube.client import ApiClient
from perdure.kube.connections import Connections
from perdure.kube.kopf_settings import log_in, settings_for
from perdure.kube.preflight import NotInstalled, require_crds
from perdure.reconcile.ports.errors import ApiUnavailable

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
STOP_SECONDS = 10.0
"""For kopf to end its watches; after that its thread, which is a daemon, is left behind."""
CLOSE_SECONDS = 2.0
"""For its connections to be closed after that."""

log = structlog.get_logger(__name__)


class Sink(Protocol):
    """Who wants to know of runtimes. Called on the loop that runs the intake; must not block or raise."""

    def put(self, runtime: Runtime) -> None: ...

    def deleted(self, runtime: Runtime) -> None:
        """Deleted, or out of the selector: a hint, never a proof."""


class ArchiveSink(Protocol):
    """Who wants to know of RuntimeArchives. Called as a `Sink` is."""

    def put(self, archive: ArchiveObject) -> None: ...

    def deleted(self, archive: ArchiveObject) -> None: ...


LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Deliver = Callable[[Mapping[str, Any]], Callable[[], None]]
"""Makes an object typed, in kopf's thread, and returns the call that hands it over, for the caller's loop."""


@dataclass(frozen=True, slots=True)
class Watch:
    """One resource to watch. `labels` and `fields` are selectors; empty: all."""

    plural: str
    seen: Deliver
    left: Deliver
    labels: str = ""
    fields: str = ""


def runtime_watches(sink: Sink, selector: str = "") -> tuple[Watch, ...]:
    """Both runtime kinds."""

    def seen(raw: Mapping[str, Any]) -> Callable[[], None]:
        runtime = parse_runtime(raw)
        return lambda: sink.put(runtime)

    def left(raw: Mapping[str, Any]) -> Callable[[], None]:
        runtime = parse_runtime(raw)
        return lambda: sink.deleted(runtime)

    return tuple(Watch(kind.plural, seen, left, labels=selector) for kind in Kind)


def node_watch(seen_by: Callable[[RuntimeNode], None], name: NodeName | None = None) -> Watch:
    """RuntimeNodes: all, for the controller, or an agent's own. A deletion is a hint: the next list decides."""

    def seen(raw: Mapping[str, Any]) -> Callable[[], None]:
        node = parse_node(raw)
        return lambda: seen_by(node)

    def left(raw: Mapping[str, Any]) -> Callable[[], None]:
        node = parse_node(raw)
        return lambda: log.info("node_deletion_seen", node=node.name)

    return Watch(NODE_PLURAL, seen, left, fields=f"metadata.name={name}" if name is not None else "")


def archive_watch(sink: ArchiveSink) -> Watch:
    """RuntimeArchives, for the controller, which carries `retain` into the catalogue. A deletion only unlists."""

    def seen(raw: Mapping[str, Any]) -> Callable[[], None]:
        archive = parse_archive(raw)
        return lambda: sink.put(archive)

    def left(raw: Mapping[str, Any]) -> Callable[[], None]:
        archive = parse_archive(raw)

        def unlisted() -> None:
            log.info("archive_unlisted", namespace=archive.namespace, archive=archive.name)
            sink.deleted(archive)

        return unlisted

    return Watch(ARCHIVE_PLURAL, seen, left)


class Intake:
    """Runs the watches until cancelled. `role` names this process among kopf's (`agent`, `controller`).

    `loop_factory` makes the loop of kopf's thread (`uvloop.new_event_loop`); None: asyncio's own.
    """

    def __init__(
        self,
        client: ApiClient,
        source: ClusterSource,
        role: str,
        watches: Sequence[Watch],
        loop_factory: LoopFactory | None = None,
    ) -> None:
        self._client = client
        self._source = source
        self._role = role
        self._watches = tuple(watches)
        self._loop_factory = loop_factory
        self.restarts = 0
        """How often kopf ended by itself and was run again."""
        self.unreadable = 0
        """Events whose object could not be made typed."""

    async def run(self) -> NoReturn:
        """Raises nothing but `CancelledError`; an API server that is away, or CRDs that are missing, are waited for."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            try:
                await require_crds(self._client)
                why = await self._run_once()
            except (ApiUnavailable, NotInstalled) as error:
                why = str(error)
            if time.monotonic() - started > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self.restarts += 1
            log.warning("intake_restarted", role=self._role, why=why, restarts=self.restarts)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> str:
        """One life of kopf; returns why it ended."""
        operation = _Operation(asyncio.get_running_loop(), self._loop_factory)
        registry = self._registry(operation)
        settings = settings_for(
            self._role,
            labels={watch.plural: watch.labels for watch in self._watches if watch.labels},
            fields={watch.plural: watch.fields for watch in self._watches if watch.fields},
        )
        thread = threading.Thread(
            target=operation.run, args=(registry, settings), name=f"perdure-intake-{self._role}", daemon=True
        )
        thread.start()
        try:
            return await asyncio.shield(operation.ended)
        finally:
            operation.stop()
            await asyncio.wait({operation.ended}, timeout=STOP_SECONDS)

    def _registry(self, operation: _Operation) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return await log_in(self._source, operation.connections)

        for watch in self._watches:
            self._register(registry, watch, operation.hand_over)
        return registry

    def _register(
        self, registry: kopf.OperatorRegistry, watch: Watch, hand_over: Callable[[Callable[[], None]], None]
    ) -> None:
        @kopf.on.event(GROUP, VERSION, watch.plural, id=f"intake-{watch.plural}", registry=registry)
        async def receive(event: kopf.RawEvent, **_: Any) -> None:
            deliver = watch.left if event["type"] == "DELETED" else watch.seen
            try:
                call = deliver(event["object"])
            except (KeyError, ValueError) as error:
                self.unreadable += 1
                log.error("object_not_readable", resource=watch.plural, error=f"{type(error).__name__}: {error}")
            else:
                hand_over(call)


class _Operation:
    """One thread with one loop with one `kopf.operator` in it."""

    def __init__(self, owner: asyncio.AbstractEventLoop, loop_factory: LoopFactory | None) -> None:
        self._owner = owner
        self._loop_factory = loop_factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self.connections = Connections()
        self.ended: asyncio.Future[str] = owner.create_future()
        """Done when the thread has nothing more to say; belongs to the owner's loop."""

    def run(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        """The thread, from its beginning to its end."""
        why = "kopf returned"
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._operate(registry, settings))
        except asyncio.CancelledError:
            why = "kopf was cancelled"
        except Exception as error:  # noqa: BLE001 - whatever ends kopf, the supervisor logs it and runs it again
            why = f"{type(error).__name__}: {error}"
        self._tell(lambda: None if self.ended.done() else self.ended.set_result(why))

    def hand_over(self, call: Callable[[], None]) -> None:
        """From kopf's thread to the owner's loop; nothing once we are stopping."""
        if not self._stopping:
            self._tell(call)

    def stop(self) -> None:
        """Ask kopf to end. From the owner's loop; may be called twice."""
        with self._lock:
            self._stopping = True
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)

    async def _operate(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        stop = asyncio.Event()
        with self._lock:
            if self._stopping:
                return
            self._loop, self._stop = asyncio.get_running_loop(), stop
        try:
            await kopf.operator(registry=registry, settings=settings, clusterwide=True, standalone=True, stop_flag=stop)
        finally:
            with self._lock:
                self._loop = self._stop = None
            if not await self.connections.end(CLOSE_SECONDS):
                log.warning("intake_connections_left", seconds=CLOSE_SECONDS)

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._owner.call_soon_threadsafe(call)
        except RuntimeError:
            # The owner's loop is closed: the process is ending, and nobody is left to be told.
            self._stopping = True
