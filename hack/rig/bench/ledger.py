"""``hack/bench ledger``: what the ledger does per second, what a question costs, and what it costs while nothing happens.

Called by ``rig.bench.__main__``.
"""

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from rig.bench import crowds, ledger_load, ledger_sweep
from rig.bench.profile import profile, profile_rows, render_profile
from rig.bench.results import Goal, Row, percentile, render_table
from rig.bench.stage import Stage, open_stage
from rig.paths import CHECKOUT
from rig.progress import run as run_command
from rig.progress import say, ticking

DEFAULT_N = 200
"""Questions of each kind; state changes are a hundred times as many."""
QUICK_N = 10
SWEPT, QUICK_SWEPT = (10_000, 100), (1_000, 10)
"""Stopped runtimes, and how many of them become due."""
HISTORY_ROWS, QUICK_HISTORY_ROWS = 1_000_000, 20_000
IDLE_SECONDS, QUICK_IDLE_SECONDS = 60, 10
IDLE_SIZE = 20
DATABASE = "bench"
"""Beside the environment's own, which Perdure's processes use."""
HELP_GOAL_MS = 300.0


async def run(directory: Path | None, n: int, *, quick: bool, history_rows: int | None = None) -> tuple[list[Row], str]:
    """All rows, and their table. ``history_rows``: how long the history is that questions are asked of."""
    rows: list[Row] = []
    async with open_stage(directory) as stage:
        say("==> measuring")
        url = await _empty_ledger(stage)
        rows += await ledger_load.transitions(url, n * 100, stage.accounts.seconds)
        rows += await ledger_sweep.sweep(url, *(QUICK_SWEPT if quick else SWEPT))
        rows += await ledger_load.histories(url, history_rows or (QUICK_HISTORY_ROWS if quick else HISTORY_ROWS), n)
        rows.append(await _help(max(5, n // 10)))
        for roles in (("standalone",), ("controller", "agent")):
            rows += await _idle(stage, roles, QUICK_IDLE_SECONDS if quick else IDLE_SECONDS)
    return rows, render_table(rows)


async def _idle(stage: Stage, roles: tuple[str, ...], seconds: float) -> list[Row]:
    """What these processes write into the ledger while nothing happens."""
    with ticking(f"starting perdure {' and '.join(roles)}"):
        await stage.start_perdure(*roles)
    rows = [
        replace(row, name=f"{row.name}, {' and '.join(roles)}")
        for row in await crowds.idle(stage, IDLE_SIZE, seconds)
        if "SQL" in row.name
    ]
    await stage.stop_perdure()
    return rows


async def run_profile(directory: Path | None, n: int) -> tuple[list[Row], str]:
    """Where the time goes in a life, with the ledger's share, and its table."""
    async with open_stage(directory) as stage:
        await stage.start_perdure("standalone", log_level="debug")
        chapters = await profile(stage, n, {})
    rows = [row for chapter, spans in chapters.items() for row in profile_rows(chapter, spans)]
    return rows, render_profile(chapters)


async def _empty_ledger(stage: Stage) -> str:
    server = stage.environment.database
    await asyncio.to_thread(server.psql, f"CREATE DATABASE {DATABASE}")
    async with Database(server.url_of(DATABASE)) as database:
        await migrate(database)
    return server.url_of(DATABASE)


async def _help(n: int) -> Row:
    """A new process each time, files in the page cache."""
    command = [sys.executable, "-m", "perdure.cli.main", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "controller")}
    seconds = []
    for _ in range(n):
        began = time.perf_counter()
        await asyncio.to_thread(run_command, command, timeout=30, env=environment)
        seconds.append(time.perf_counter() - began)
    return Row("perdure --help, p95", "ms", percentile(seconds, 95) * 1000, n, goal=Goal(HELP_GOAL_MS),
               notes="wall time of the whole process")  # fmt: skip
