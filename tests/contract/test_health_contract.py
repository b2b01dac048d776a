"""What every ledger and every journal does with health events: written once, and kept on their way."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.contract.ledger_rig import Rig, rig
from tests.contract.test_journal_contract import Reopen, reopen
from tests.integration.ledger.samples import NAME_A, NODE_B, finished, ref, started
from tests.unit.journal.samples import health_row, rows

from perdure.plan.health import HealthKind, ProbeKind
from perdure.reconcile.ports.journal import HealthRow

__all__ = ["reopen", "rig"]


def event(n: int, kind: HealthKind = HealthKind.EXITED, *, at: float = 0.0) -> HealthRow:
    return HealthRow(f"uid-1/health/{n}", ref(), kind, at or time.time() + n, "why", code=137)


async def test_an_event_is_one_row_however_often_and_by_whom_it_is_written(rig: Rig) -> None:
    for agent in (rig.agent(), rig.agent(), rig.agent(NODE_B)):
        await agent.apply([event(1), event(2, HealthKind.STARTED)], NAME_A)
        await agent.apply([event(1, HealthKind.OOM)], NAME_A)
    assert await rig.health_events() == [
        ("uid-1", "container_exited", None, 137, "why"),
        ("uid-1", "container_started", None, 137, "why"),
    ]


async def test_events_come_with_operations_in_one_batch(rig: Rig) -> None:
    probe = replace(event(3, HealthKind.PROBE_FAILED), probe=ProbeKind.READINESS, code=None, message="")
    await rig.agent().apply([started(ref()), probe, finished(ref(), snapshot_key="key-1")], NAME_A)
    assert await rig.health_events() == [("uid-1", "probe_failed", "readiness", None, None)]


async def test_an_event_of_a_wrong_clock_is_kept(rig: Rig) -> None:
    for n, at in enumerate((1.0, time.time() + 4e8), start=1):
        await rig.agent().apply([event(n, at=at)], NAME_A)
        await rig.agent().apply([event(n, at=at)], NAME_A)
    assert len(await rig.health_events()) == 2


async def test_a_message_with_odd_characters_does_not_hold_the_rows_up(rig: Rig) -> None:
    await rig.agent().apply([replace(event(1), message="nul \0 and \udce4")], NAME_A)
    assert len(await rig.health_events()) == 1


async def test_events_wait_in_the_journal_among_the_operations(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(rows=rows(1))
    await journal.commit(rows=[health_row(1), *rows(2), health_row(2)])
    assert list((await reopen()).unsent()) == [*rows(1), health_row(1), *rows(2), health_row(2)]
