"""What every long-running process has: an event loop, health endpoints, signals that end it, and one group of tasks.

The composition roots (`agent`, `controller`, `standalone`) fill it in and call `serve`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from perdure.cli.settings import CommonSettings
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient
from perdure.kube.heartbeat import NodeNameTaken
from perdure.kube.lease import LeadershipLost
from perdure.reconcile.ports.errors import PortError
from perdure.telemetry.health import Checks, HealthServer
from perdure.telemetry.loop_lag import Heartbeat, measure
from perdure.telemetry.metrics import Metrics, new_metrics

log = structlog.get_logger(__name__)


class _Ended(Exception):
    """A signal asked the process to end; raised inside the group to cancel what runs in it."""


@dataclass(frozen=True, slots=True)
class Process:
    """What the parts of a process get from it."""

    metrics: Metrics
    checks: Checks
    group: asyncio.TaskGroup
    closing: AsyncExitStack
    """Closed after every task has ended, in reverse order."""

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Run beside everything else until the end. One that fails ends the process: a supervisor starts it anew, and
        whatever it was doing is resumed from what is observed."""
        self.group.create_task(work, name=name)

    def crash_counter(self, place: str) -> Callable[[str], None]:
        """Counts what the supervised loop at `place` survived; called with the name of the error's class."""

        def count(_name: str) -> None:
            self.metrics.crashes.labels(place=place).inc()

        return count


async def open_lease_client(closing: AsyncExitStack, source: ClusterSource) -> ApiClient:
    """For the renewals of one Lease alone: a burst of other requests, to a server that is slow, must not keep them waiting
    for a connection."""
    return await closing.enter_async_context(ApiClient(source))


RETRY_SECONDS = 2.0
EXPECTED = (PortError, LeadershipLost, NodeNameTaken)
"""What ends a process in words that a person can act on."""

Part = TypeVar("Part")

Main = Callable[[Process], Coroutine[Any, Any, None]]


def run_process(settings: CommonSettings, checks: Iterable[str], main: Main) -> None:
    """Run `main`, which sets everything up and spawns it, until SIGTERM or SIGINT.

    SIGUSR1 writes the stacks of all threads to standard error, also of a process whose event loop does not turn.
    """
    faulthandler.register(signal.SIGUSR1)
    # asyncio's own loop and not uvloop: archives are written by child processes, and uvloop starts those with fork(),
    # whose child runs Python beside the locks of gRPC's and kopf's threads; asyncio's way goes through vfork() and exec.
    asyncio.run(serve(settings, checks, main))


async def serve(settings: CommonSettings, checks: Iterable[str], main: Main) -> None:
    """Health endpoints are there before anything else, so that a process that waits can say for what."""
    metrics, known = new_metrics(), Checks(checks)
    heartbeat = Heartbeat(asyncio.get_running_loop().time)
    health = HealthServer(metrics.registry, known, heartbeat)
    address = await health.start(settings.http_address)
    log.info("serving_health", address=str(address))
    try:
        async with AsyncExitStack() as closing:
            closing.push_async_callback(health.stop)
            async with asyncio.TaskGroup() as group:
                group.create_task(_end_on_signal(), name="signals")
                group.create_task(measure(metrics.loop_lag_seconds, heartbeat), name="loop-lag")
                group.create_task(main(Process(metrics, known, group, closing)), name="main")
    except* _Ended:
        log.info("ended_by_signal")
    except* EXPECTED as group:
        # A part cannot go on: its own words, not a group's.
        raise _first(group) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def patiently(process: Process, check: str, attempt: Callable[[], Coroutine[Any, Any, Part]]) -> Part:
    """Try until it works: a part that is away at start is waited for, visibly, and never guessed about."""
    while True:
        try:
            part = await attempt()
        except PortError as error:
            process.checks.report(check, False, str(error))
            log.warning("waiting_for_part", part=check, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            process.checks.report(check, True)
            return part


async def _end_on_signal() -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    raise _Ended
