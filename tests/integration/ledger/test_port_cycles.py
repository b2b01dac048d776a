"""No number is given twice, lost or left behind, whenever whoever holds it is killed."""

from __future__ import annotations

import logging

import pytest
from tests.integration.ledger.port_cycles import play

pytestmark = pytest.mark.env

CYCLES = 1000


async def test_ports_are_never_shared_lost_or_left_behind(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="psycopg.pool")  # it warns of every connection that was ended
    counts = await play(database_url, cycles=CYCLES, holders=6, seed=4)
    assert counts["cycles"] == CYCLES
    for event in ("dropped", "ended", "moved", "edited", "swept", "PortTaken", "PortRangeExhausted"):
        assert counts[event] > 0, f"{event} never happened, so nothing was shown about it: {counts}"
