"""The user's side of the API server: requests, and a watch that knows when each change of an object was seen.

A benchmark ends an interval at the watch event, as a user of ``kubectl wait`` would see it; nothing is polled. Called by
the benchmarks' stage.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from rig.controlplane import ControlPlane

REQUEST_SECONDS = 60.0
WATCH_SECONDS = 6 * 3600
EVENT_SECONDS = 120.0
NAMESPACE = "bench"
RUNTIMES = f"/apis/perdure.dev/v1alpha1/namespaces/{NAMESPACE}/botruntimes"
LINE_BYTES = 1 << 22
"""Longest watch event that can be read."""

OK = 200
TOO_EARLY = 429
"""What a watch is answered while the API server still fills its cache of a new resource; it says when to ask again."""

Json = dict[str, Any]


class BenchmarkError(RuntimeError):
    """A benchmark could not be carried out; the message says what was waited for or refused."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One watch event: when it was read (time.perf_counter), and what it told."""

    at: float
    type: str
    object: Json

    @property
    def status(self) -> Json:
        """Its status; empty while it has none."""
        status: Json = self.object.get("status", {})
        return status

    def is_phase(self, phase: str) -> bool:
        """True if the status shows this phase for the spec that the object has."""
        generation = self.object["metadata"]["generation"]
        return self.status.get("phase") == phase and self.status.get("observedGeneration") == generation

    def is_ready(self, restarts: int = 0) -> bool:
        """True if it is Running and Ready after at least so many restarts."""
        again = self.status.get("restarts", 0) >= restarts
        return self.type != "DELETED" and again and self.is_phase("Running") and self.has_condition("Ready")

    def has_condition(self, name: str) -> bool:
        """True if the status has this condition, and it holds."""
        conditions = {found["type"]: found["status"] for found in self.status.get("conditions", [])}
        return conditions.get(name) == "True"


Condition = Callable[[Seen], bool]


class Cluster:
    """See `open_cluster`."""

    def __init__(self, session: aiohttp.ClientSession, plane: ControlPlane) -> None:
        self._session = session
        self._url = plane.url
        self._history: dict[str, list[Seen]] = {}
        self._changed = asyncio.Condition()

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request; a PATCH is a merge patch. Raises BenchmarkError if it is refused."""
        async with self._session.request(method, f"{self._url}{path}", **_content(method, body)) as response:
            text = await response.text()
            if response.status >= 400:
                raise BenchmarkError(f"{method} {path}: {response.status} {text[:500]}")
            found: Json = json.loads(text)
            return found

    async def metrics(self) -> str:
        """What the API server tells of itself."""
        async with self._session.get(f"{self._url}/metrics") as response:
            return await response.text()

    async def create(self, name: str, spec: Json) -> Json:
        """POST a BotRuntime."""
        kind = {"apiVersion": "perdure.dev/v1alpha1", "kind": "BotRuntime"}
        return await self.request("POST", RUNTIMES, {**kind, "metadata": {"name": name}, "spec": spec})

    async def patch(self, name: str, **spec: Any) -> None:
        """Change fields of its spec."""
        await self.request("PATCH", f"{RUNTIMES}/{name}", {"spec": spec})

    async def delete(self, name: str) -> None:
        """DELETE it without waiting for its end."""
        await self.request("DELETE", f"{RUNTIMES}/{name}")

    async def seen(self, name: str, condition: Condition, what: str, *, since: float) -> Seen:
        """The first event of the object of this name, read at ``since`` or later, for which the condition holds.

        Raises BenchmarkError after EVENT_SECONDS, with the newest status.
        """

        def first() -> Seen | None:
            events = self._history.get(name, [])
            return next((event for event in events if event.at >= since and condition(event)), None)

        try:
            async with asyncio.timeout(EVENT_SECONDS), self._changed:
                while (found := first()) is None:
                    await self._changed.wait()
        except TimeoutError as error:
            newest = json.dumps(self._history[name][-1].status) if name in self._history else "never seen"
            raise BenchmarkError(f"{name} is not {what} after {EVENT_SECONDS:.0f} s: {newest}") from error
        return found

    def history(self, name: str) -> list[Seen]:
        """All that was seen of an object so far; grows until it is forgotten."""
        return self._history.setdefault(name, [])

    def forget(self, name: str) -> None:
        """Drop what was seen of an object that is gone."""
        self._history.pop(name, None)

    @asynccontextmanager
    async def watching(self, path: str) -> AsyncIterator[None]:
        """Take note of every event of the objects at ``path`` (a collection) meanwhile; no two kinds may share a name.

        Raises BenchmarkError when the API server ends the watch.
        """
        async with asyncio.TaskGroup() as tasks:
            began = asyncio.Event()
            watch = tasks.create_task(self._watch(path, began))
            await began.wait()
            yield
            watch.cancel()

    async def _watch(self, path: str, began: asyncio.Event) -> None:
        parameters = {"watch": "1", "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{self._url}{path}"
        while True:
            async with self._session.get(url, params=parameters, timeout=timeout) as response:
                if response.status == TOO_EARLY:
                    await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                    continue
                if response.status != OK:
                    raise BenchmarkError(f"watching {path}: {response.status} {(await response.text())[:500]}")
                began.set()
                async for line in response.content:
                    await self._note(time.perf_counter(), json.loads(line))
            raise BenchmarkError("the API server ended the watch")

    async def _note(self, at: float, event: Json) -> None:
        seen = Seen(at, event["type"], event["object"])
        async with self._changed:
            self._history.setdefault(seen.object["metadata"]["name"], []).append(seen)
            self._changed.notify_all()


@asynccontextmanager
async def open_cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    """A client with its watch running, as an administrator, in a namespace for benchmarks."""
    tls = ssl.create_default_context(cafile=str(plane.authority.certificate))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=0),
        headers={"Authorization": f"Bearer {plane.admin_token}"},
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        read_bufsize=LINE_BYTES,
    ) as session:
        cluster = Cluster(session, plane)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await cluster.request("POST", "/api/v1/namespaces", namespace)
        async with cluster.watching(RUNTIMES):
            yield cluster


def _content(method: str, body: Json | None) -> Json:
    if body is None:
        return {}
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    return {"data": json.dumps(body), "headers": {"Content-Type": kind}}
