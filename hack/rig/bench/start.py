"""``hack/bench start``: everything between ``kubectl apply`` and a running, resumed or removed container.

Called by ``rig.bench.__main__``.
"""

from pathlib import Path

from rig.bench import crowds, lives
from rig.bench.profile import profile, profile_rows, render_profile
from rig.bench.results import Row, render_table
from rig.bench.stage import open_stage
from rig.progress import say, ticking

DEFAULT_N = 200
QUICK_N = 10


async def run(directory: Path | None, n: int, *, quick: bool) -> tuple[list[Row], str]:
    """All rows, and their table."""
    rows: list[Row] = []
    async with open_stage(directory) as stage:
        with ticking("starting perdure standalone"):
            await stage.start_perdure("standalone")
        say("==> measuring")
        rows += await lives.live(stage, n)
        rows += await lives.preserve(stage, max(5, n // 5))
        rows += await crowds.burst(stage, size=10 if quick else 50, rounds=1 if quick else 4)
        rows += await crowds.writes_and_restart(stage, size=5 if quick else 20)
        rows += await crowds.idle(stage, size=20 if quick else 1000, seconds=10 if quick else 60)
        await stage.stop_perdure()
        with ticking("starting perdure controller and perdure agent"):
            await stage.start_perdure("controller", "agent")
        rows += await lives.apart(stage, max(5, n // 2))
    return rows, render_table(rows)


async def run_profile(directory: Path | None, n: int) -> tuple[list[Row], str]:
    """Where the time goes in a life, and its table."""
    async with open_stage(directory) as stage:
        await stage.start_perdure("standalone", log_level="debug")
        chapters = await profile(stage, n, {})
    rows = [row for chapter, spans in chapters.items() for row in profile_rows(chapter, spans)]
    return rows, render_profile(chapters)
