"""Rounds of one activity each, in which the agent is killed at a random instant; called by `test_kills` and `hack/chaos`.

A round ends only when what was under way has ended as if nobody had been killed, with every file as it was.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig.filetree import Tree, difference

LATEST_KILL_SECONDS = 1.6
"""Counted from when kubectl is started, which takes about 0.2 s; most activities are over after another second."""
KILLS_PER_ROUND = 2


@dataclass(slots=True)
class Arena:
    """Where rounds are played. `killed_in` counts what the agent had said last when it was killed."""

    agent: Operator
    new_runtime: Callable[[str], Runtime]
    seed: int
    killed_in: Counter[str] = field(default_factory=Counter)

    def while_killing(self, chance: random.Random, act: Callable[[], None]) -> None:
        """Do something while the agent is killed and started again; returns when that is done and it is ready."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            acting = pool.submit(act)
            for kill in range(KILLS_PER_ROUND):
                self.agent.kill_after(chance.uniform(0.0, LATEST_KILL_SECONDS))
                self.killed_in[_last_event(self.agent)] += 1
                self.agent.start(ready=kill == KILLS_PER_ROUND - 1)
            acting.result()


def play(arena: Arena, activity: str, number: int) -> None:
    """One round. Fails (AssertionError) where the end is not what it would have been without a kill."""
    chance = random.Random(f"{arena.seed} {activity} {number}")
    runtime = arena.new_runtime(f"{activity.lower()}-{number}")
    _ROUNDS[activity](arena, chance, runtime)
    _purge(runtime)


def _creating(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    arena.while_killing(chance, lambda: _apply(runtime))
    runtime.wait_ready()
    assert runtime.status()["restarts"] == 0
    assert _snapshots(runtime) == [f"snapshot {runtime.container_id}-1"]


def _running(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    files = _filled(runtime)
    process = runtime.process()
    arena.while_killing(chance, lambda: None)
    runtime.wait_ready()
    assert runtime.process() == process, "a healthy runtime was restarted"
    assert difference(files, runtime.tree()) == []


def _preserving(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    files = _filled(runtime)
    arena.while_killing(chance, runtime.delete)
    runtime.wait_gone()
    assert len(runtime.archives()) == 1
    runtime.wait_nothing_left()
    runtime.apply().wait_ready()
    assert difference(files, runtime.tree()) == []


def _restoring(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    files = _filled(runtime)
    runtime.delete_and_wait()
    arena.while_killing(chance, lambda: _apply(runtime))
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []
    assert len(_snapshots(runtime)) == 1


def _cleaning(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    files = _filled(runtime)
    arena.while_killing(chance, lambda: runtime.patch(desiredState="Removed"))
    runtime.wait_phase("Removed")
    assert _snapshots(runtime) == []
    arena.while_killing(chance, lambda: runtime.patch(desiredState="Running"))
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []
    assert len(_snapshots(runtime)) == 1


def _purging(arena: Arena, chance: random.Random, runtime: Runtime) -> None:
    _filled(runtime)
    runtime.delete_and_wait()
    runtime.apply().wait_ready()
    runtime.patch(deletionPolicy="Purge")
    arena.while_killing(chance, runtime.delete)


_ROUNDS: dict[str, Callable[[Arena, random.Random, Runtime], None]] = {
    "Creating": _creating,
    "Running": _running,
    "Preserving": _preserving,
    "Restoring": _restoring,
    "Cleaning": _cleaning,
    "Purging": _purging,
}
ACTIVITIES = tuple(_ROUNDS)


def _apply(runtime: Runtime) -> None:
    runtime.apply()


def _filled(runtime: Runtime) -> Tree:
    runtime.apply().wait_ready()
    runtime.fill(megabytes=8)
    return runtime.tree()


def _purge(runtime: Runtime) -> None:
    """Whatever the round left, a Purge leaves nothing of it anywhere."""
    found = runtime.read()
    if found is not None and "deletionTimestamp" not in found["metadata"]:
        runtime.patch(deletionPolicy="Purge")
        runtime.delete()
    runtime.wait_gone()
    site = runtime.site
    runtime.wait_nothing_left()
    eventually(runtime.archives, f"no RuntimeArchive of {runtime.name} is left", lambda left: left == [])
    own = f"/{runtime.kubectl.namespace}/{runtime.kind.value}/{runtime.name}/"
    assert [path for path in site.archive_files() if own in str(path)] == []


def _snapshots(runtime: Runtime) -> list[str]:
    return [thing for thing in runtime.site.things_of(runtime.uid) if thing.startswith("snapshot ")]


def _last_event(agent: Operator) -> str:
    """What the process was at when it was killed, as far as its log tells."""
    lines = [line for line in agent.log().splitlines() if line.startswith("{")]
    if not lines:
        return "starting"
    try:
        last = json.loads(lines[-1])
    except ValueError:
        return "in the middle of a line"
    return f"{last.get('event')} {last.get('step') or last.get('op') or ''}".strip()
