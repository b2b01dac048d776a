"""What a probe and a scraper see, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest

from perdure.telemetry.health import (
    HEARTBEAT_LIMIT_SECONDS,
    Address,
    AddressInUse,
    Checks,
    HealthServer,
    InvalidAddress,
)
from perdure.telemetry.loop_lag import Heartbeat
from perdure.telemetry.metrics import Metrics, new_metrics

LOOPBACK = Address("127.0.0.1", 0)


@dataclass
class Served:
    base: str
    address: Address
    checks: Checks
    metrics: Metrics
    session: aiohttp.ClientSession
    now: float = 0.0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    checks, metrics = Checks(["engine", "ledger"]), new_metrics()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        it = Served("", LOOPBACK, checks, metrics, session)
        server = HealthServer(metrics.registry, checks, Heartbeat(lambda: it.now))
        it.address = await server.start(LOOPBACK)
        it.base = f"http://{it.address}"
        yield it
        await server.stop()


async def test_ready_only_when_every_part_reported_that_it_is_there(served: Served) -> None:
    async with served.session.get(f"{served.base}/readyz") as answer:
        assert answer.status == 503
        body = await answer.json()
        assert body["checks"]["engine"] == {"passed": False, "detail": "not reported yet"}
    served.checks.report("engine", True, "containerd 1.6.20")
    async with served.session.get(f"{served.base}/readyz") as answer:
        assert answer.status == 503
    served.checks.report("ledger", True)
    async with served.session.get(f"{served.base}/readyz") as answer:
        assert answer.status == 200
        body = await answer.json()
        assert body["ready"] is True
        assert body["checks"]["engine"] == {"passed": True, "detail": "containerd 1.6.20"}
    served.checks.report("ledger", False, "connection refused")
    async with served.session.get(f"{served.base}/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["checks"]["ledger"]["detail"] == "connection refused"


async def test_live_does_not_depend_on_parts_but_on_the_heartbeat(served: Served) -> None:
    async with served.session.get(f"{served.base}/livez") as answer:
        assert answer.status == 200
    served.now = HEARTBEAT_LIMIT_SECONDS + 1
    async with served.session.get(f"{served.base}/livez") as answer:
        assert answer.status == 503
        assert (await answer.json())["heartbeatAgeSeconds"] == HEARTBEAT_LIMIT_SECONDS + 1


async def test_metrics_are_this_process_own(served: Served) -> None:
    served.metrics.steps.labels(step="StartTask", outcome="success").inc()
    served.metrics.frozen.labels(reason="MassAbsence").set(1)
    async with served.session.get(f"{served.base}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = await answer.text()
    assert 'perdure_steps_total{outcome="success",step="StartTask"} 1.0' in text
    assert 'perdure_frozen{reason="MassAbsence"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert 'step="StartTask"' not in str(list(new_metrics().registry.collect()))


async def test_an_address_in_use_is_said_with_the_setting_to_change(served: Served) -> None:
    other = HealthServer(served.metrics.registry, served.checks, Heartbeat(lambda: 0.0))
    with pytest.raises(AddressInUse, match=f"{served.address}.*--http-address"):
        await other.start(served.address)


async def test_after_stop_nobody_listens_and_stopping_again_is_nothing(served: Served) -> None:
    server = HealthServer(served.metrics.registry, served.checks, Heartbeat(lambda: 0.0))
    address = await server.start(LOOPBACK)
    await server.stop()
    await server.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await served.session.get(f"http://{address}/livez")


def test_reporting_a_part_that_was_never_named_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match="engine"):
        Checks(["engine"]).report("enigne", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9464", Address("127.0.0.1", 9464)),
        ("[::1]:0", Address("::1", 0)),
        (":80", Address("", 80)),
        ("localhost:1", Address("localhost", 1)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "9464", "localhost", "localhost:", "localhost:http", "h:70000", "h:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddress, match=r"127\.0\.0\.1:9464"):
        Address.parse(text)
