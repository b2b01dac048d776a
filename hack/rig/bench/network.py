"""``hack/bench network``: the same starts with a network, and what attaching and looking after networks cost.

Called by ``rig.bench.__main__``. Whoever attaches has the environment's network for itself: the engine's chapters run
without any of Perdure's processes, and a kubelet, which is never idle, comes in an environment of its own at the end.
"""

import asyncio
from pathlib import Path

from rig import binaries
from rig.bench import attachment_costs, networked, pods
from rig.bench.attaching import bridge_alone
from rig.bench.profile import profile, profile_rows, render_profile
from rig.bench.results import Row, render_table
from rig.bench.stage import open_stage
from rig.progress import say, ticking

DEFAULT_N = 100
QUICK_N = 10
BURST = 20


async def run(directory: Path | None, n: int, *, quick: bool) -> tuple[list[Row], str]:
    """All rows, and their table."""
    rows: list[Row] = []
    rounds = 1 if quick else 5
    await asyncio.to_thread(binaries.ensure, binaries.POD_PROGRAMS)
    async with open_stage(directory) as stage:
        bridge, whole = bridge_alone(stage.environment), stage.environment.network.configuration_directory
        say("==> measuring")
        rows += await networked.at_the_engine(stage, bridge, n, port=False)
        rows += await networked.at_the_engine(stage, whole, n, port=True)
        rows += await attachment_costs.parts(stage, bridge, n, port=False)
        rows += await attachment_costs.parts(stage, whole, n, port=True)
        rows += await attachment_costs.upkeep(stage, whole)
        with ticking("starting perdure standalone"):
            await stage.start_perdure("standalone")
        rows += await networked.through_the_api(stage, n)
        rows += await networked.burst(stage, whole, BURST, rounds)
    rows += await pods.beside_pods(directory, n, BURST, rounds)
    return rows, render_table(rows)


async def run_profile(directory: Path | None, n: int) -> tuple[list[Row], str]:
    """Where the time goes in a life with a network, and its table."""
    async with open_stage(directory) as stage:
        await stage.start_perdure("standalone", log_level="debug")
        chapters = await profile(stage, n, networked.WITH)
    rows = [row for chapter, spans in chapters.items() for row in profile_rows(chapter, spans)]
    return rows, render_profile(chapters)
