"""Nothing is cleaned up too early, twice, or without a trace by processes that are paused, killed and told a wrong time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.ledger.contest.play import Contest, play

pytestmark = pytest.mark.env

RUNTIMES, CASES, HOLDERS = 80, 160, 3


async def test_competing_holders_clean_up_each_life_once_in_time_and_with_a_trace(
    database_url: str, state_dir: Path
) -> None:
    counts = await play(Contest(database_url, state_dir, RUNTIMES, CASES, HOLDERS, seed=5))
    assert counts["cases"] == CASES
    for event in ("pauses", "kills", "clock jumps", "superseded"):
        assert counts[event] > 0, f"{event} never happened, so nothing was shown about it: {counts}"
