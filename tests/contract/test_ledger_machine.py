"""Whatever two nodes do to records and leases, in whatever order: the ledger shows what a small model says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.contract.ledger_machine import LedgerMachine
from tests.contract.ledger_model import FakePlayed, Played, PostgresPlayed

from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate

FAKE_EXAMPLES, POSTGRES_EXAMPLES = 60, 15
STEPS = 30


def play(make: Callable[[], Played], runner: asyncio.Runner, folder: Path, examples: int) -> None:
    folders = (folder / f"{n}" for n in itertools.count())
    run_state_machine_as_test(
        lambda: LedgerMachine(make(), runner, next(folders)),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_records_and_leases_of_the_fake_are_as_the_model_says(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        play(FakePlayed, runner, tmp_path, FAKE_EXAMPLES)


@pytest.mark.env
def test_records_and_leases_of_postgresql_are_as_the_model_says(database_url: str, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        database = Database(database_url)
        runner.run(database.open())
        try:
            runner.run(migrate(database))
            play(lambda: PostgresPlayed(database), runner, tmp_path, POSTGRES_EXAMPLES)
        finally:
            runner.run(database.close())
