"""`/metrics`, `/livez` and `/readyz` over HTTP. Each process runs one `HealthServer` next to its work.

Live means: the event loop turns. It says nothing of parts outside, because a restart of this process does not mend
them. Ready means: every part that the process said it needs was reported to be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from perdure.telemetry.loop_lag import Heartbeat

HEARTBEAT_LIMIT_SECONDS = 10.0
_CLOSE_SECONDS = 2.0


class InvalidAddress(ValueError):
    """The text is no `HOST:PORT`; the message shows the form."""


class AddressInUse(OSError):
    """Something else listens on the address; the message names the setting to change."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0: the kernel chooses."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`127.0.0.1:9464`, `[::1]:9464`, `:9464` (all addresses). Raises `InvalidAddress`."""
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise InvalidAddress(f"{text!r} is not an address such as 127.0.0.1:9464 or [::1]:9464")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Check:
    """What is known of one part that the process needs."""

    passed: bool
    detail: str


class Checks:
    """The parts that must be there before the process is ready. A part that never reported has not passed."""

    def __init__(self, names: Iterable[str]) -> None:
        self._states = {name: Check(False, "not reported yet") for name in names}

    def report(self, name: str, passed: bool, detail: str = "") -> None:
        """Say how a part is. Raises `KeyError` for a part that was not named at the start."""
        if name not in self._states:
            raise KeyError(f"no readiness check is named {name!r}; there are {sorted(self._states)}")
        self._states[name] = Check(passed, detail)

    @property
    def ready(self) -> bool:
        return all(check.passed for check in self._states.values())

    def states(self) -> dict[str, Check]:
        """Every check by name, in the order in which they were named."""
        return dict(self._states)


class HealthServer:
    """Serves until `stop`. All handlers answer from memory: a probe never waits for a part outside."""

    def __init__(self, registry: CollectorRegistry, checks: Checks, heartbeat: Heartbeat) -> None:
        self._registry = registry
        self._checks = checks
        self._heartbeat = heartbeat
        self._runner: web.AppRunner | None = None

    async def start(self, address: Address) -> Address:
        """Listen; returns the address with the port that was bound. Raises `AddressInUse`."""
        app = web.Application()
        app.add_routes(
            [web.get("/metrics", self._metrics), web.get("/livez", self._livez), web.get("/readyz", self._readyz)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        site = web.TCPSite(runner, address.host or None, address.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise AddressInUse(
                f"cannot listen on {address} for health and metrics: {error.strerror or error}; "
                "free it or choose another with --http-address"
            ) from error
        self._runner = runner
        return Address(address.host, int(runner.addresses[0][1]))

    async def stop(self) -> None:
        """Stop listening and let requests under way finish, for at most two seconds. Again: nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _request: web.Request) -> web.Response:
        age = self._heartbeat.age
        alive = age <= HEARTBEAT_LIMIT_SECONDS
        return _answer(alive, {"live": alive, "heartbeatAgeSeconds": round(age, 3)})

    async def _readyz(self, _request: web.Request) -> web.Response:
        checks = {
            name: {"passed": check.passed, "detail": check.detail} for name, check in self._checks.states().items()
        }
        return _answer(self._checks.ready, {"ready": self._checks.ready, "checks": checks})


def _answer(good: bool, body: dict[str, object]) -> web.Response:
    return web.json_response(body, status=200 if good else 503, dumps=lambda value: json.dumps(value, indent=2) + "\n")
