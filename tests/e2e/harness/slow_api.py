"""An API server that answers slowly: everything goes on to the real one, but for one path, whose requests are held.

It runs in a thread of its own, on loopback, without TLS.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from rig.controlplane import ControlPlane

PASSED_ON = ("Accept", "Content-Type")
START_SECONDS = 60.0


class SlowApi:
    """Made by `slow_api`. What it has counted may be read from any thread."""

    def __init__(self, plane: ControlPlane, held: str) -> None:
        self.url = ""
        self.held = 0
        """Requests that wait now."""
        self.writes: list[tuple[str, int]] = []
        """The last part of the path of each object that was put, and how many requests were held just then."""
        self._plane = plane
        self._path = held
        self._tls = ssl.create_default_context(cafile=str(plane.authority.certificate))
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._serves = threading.Event()

    def write_kubeconfig(self, path: Path) -> Path:
        """For whoever is to be its client."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "slow",
            "contexts": [{"name": "slow", "context": {"cluster": "slow", "user": "admin"}}],
            "clusters": [{"name": "slow", "cluster": {"server": self.url}}],
            "users": [{"name": "admin", "user": {"token": self._plane.admin_token}}],
        }
        path.write_text(json.dumps(config))
        return path

    def run(self) -> None:
        """The thread, until `stop`."""
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def wait_until_it_serves(self) -> None:
        assert self._serves.wait(START_SECONDS), "the slow API server did not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:

            async def answer(request: web.Request) -> web.StreamResponse:
                return await self._answer(session, request)

            application = web.Application()
            application.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            self._serves.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _answer(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        if request.path == self._path:
            await self._hold()
        if request.method == "PUT":
            self.writes.append((request.path.rpartition("/")[2], self.held))
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        headers["Authorization"] = f"Bearer {self._plane.admin_token}"
        url = URL(self._plane.url + request.raw_path, encoded=True)
        async with session.request(request.method, url, headers=headers, data=await request.read()) as found:
            kept = {name: found.headers[name] for name in ("Content-Type", "Date") if name in found.headers}
            response = web.StreamResponse(status=found.status, headers=kept)
            with contextlib.suppress(ConnectionResetError):  # the client waits no longer
                await response.prepare(request)
                async for chunk in found.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
        return response

    async def _hold(self) -> None:
        """Until the client gives up, which cancels this, or all ends."""
        self.held += 1
        try:
            await self._stop.wait()
        finally:
            self.held -= 1


@contextlib.contextmanager
def slow_api(plane: ControlPlane, held: str) -> Iterator[SlowApi]:
    """`held`: the path whose requests have no answer. Serves until the end of the context."""
    api = SlowApi(plane, held)
    thread = threading.Thread(target=api.run, name="slow-api")
    thread.start()
    try:
        api.wait_until_it_serves()
        yield api
    finally:
        api.stop()
        thread.join()
