"""Who is asked when, how many at once, and when a row of answers makes another verdict."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from tests.crash.clock import jump_through
from tests.fakes.background import beside

from perdure.api.names import ContainerId, Uid
from perdure.api.probes import Probe, TcpSocketAction
from perdure.plan.health import NOTHING_PROBED, ProbeKind, Verdict
from perdure.reconcile.asking import Target
from perdure.reconcile.ports.probing import ProbeOutcome, ProbeResult
from perdure.reconcile.prober import JITTER, Prober, Streak
from perdure.reconcile.turns import NAMESPACE_SLOTS, SLOTS, SLOW_SECONDS, SLOW_SLOTS

UID = Uid("uid-1")
EPOCH = 1_800_000_000.0
"""Where the clock begins."""
PROBE = Probe(tcp_socket=TcpSocketAction(port=7777))
OK, BAD = ProbeResult(ProbeOutcome.SUCCESS), ProbeResult(ProbeOutcome.FAILURE, "nobody listens there")
UNKNOWN = ProbeResult(ProbeOutcome.UNKNOWN, "the engine is away")
LATE = ProbeResult(ProbeOutcome.FAILURE, "no answer", late=True)

# ---------------------------------------------------------------------------------------------- rows of answers


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ("", None),
        ("F", None),
        ("FF", None),
        ("FFF", False),
        ("FFSFF", None),
        ("S", None),
        ("SS", True),
        ("SSFF", True),
        ("SSFFF", False),
        ("SSFFFS", False),
        ("SSFFFSS", True),
        ("FF?F", False),
        ("S?S", True),
        ("???????", None),
    ],
)
def test_a_verdict_changes_only_with_as_many_in_a_row(answers: str, verdict: bool | None) -> None:
    streak = Streak(Probe(tcp_socket=TcpSocketAction(port=1), success_threshold=2, failure_threshold=3))
    before, changes = None, 0
    for letter in answers:
        changed = streak.add({"S": OK, "F": BAD, "?": UNKNOWN}[letter])
        now = streak.verdict.passed if streak.verdict is not None else None
        assert changed == (now is not before)
        changes, before = changes + changed, now
    assert before is verdict
    assert streak.verdict == (None if verdict is None else Verdict(verdict, "" if verdict else BAD.message))


# ---------------------------------------------------------------------------------------------- on a clock of its own


@dataclass
class Node:
    """What is asked, and what comes back after how long."""

    answer: Callable[[Target, Probe], Awaitable[ProbeResult]]
    asked: list[tuple[float, Uid, int]] = field(default_factory=list)
    changed: list[tuple[float, Uid]] = field(default_factory=list)
    counted: list[tuple[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def prober(self) -> Prober:
        def changed(uid: Uid) -> None:
            self.changed.append((clock(), uid))

        def now() -> float:
            return clock()

        return Prober(self._ask, changed, self, now, random.Random(7))

    async def _ask(self, target: Target, probe: Probe) -> ProbeResult:
        self.asked.append((clock(), target.uid, target.pid))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(target, probe)
        finally:
            self.at_once -= 1

    def times(self, uid: Uid = UID) -> list[float]:
        return [at for at, of, _ in self.asked if of == uid]

    # what it is told as a metric

    def probed(self, probe: str, result: str) -> None:
        self.counted.append((probe, result))

    def reconciled(self, outcome: str, seconds: float) -> None: ...

    def stepped(self, step: str, outcome: str, seconds: float) -> None: ...

    def finished(self, op: str, outcome: str, code: str) -> None: ...

    def happened(self, event: str) -> None: ...

    def archived(self, direction: str, size: int, seconds: float) -> None: ...


def clock() -> float:
    return asyncio.get_running_loop().time()


def target(uid: Uid = UID, pid: int = 1, probe: Probe = PROBE, **more: object) -> Target:
    made = Target(
        uid=uid,
        namespace="default",
        container=ContainerId(f"c-{uid}"),
        pid=pid,
        started_at=EPOCH,
        probes={ProbeKind.READINESS: probe},
        netns="/run/netns/x",
        address="127.0.0.1",
        ports={},
        secrets=frozenset(),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def after(seconds: float, result: ProbeResult) -> Callable[[Target, Probe], Awaitable[ProbeResult]]:
    async def answer(_target: Target, _probe: Probe) -> ProbeResult:
        await asyncio.sleep(seconds)
        return result

    return answer


def play(node: Node, scene: Callable[[Prober], Awaitable[None]]) -> None:
    """A scene while its prober runs."""

    async def whole() -> None:
        prober = node.prober()
        async with beside(prober.run()):
            await scene(prober)

    jump_through(whole())


def test_it_is_asked_after_its_delay_and_then_once_a_period() -> None:
    node = Node(after(0.2, OK))

    async def scene(prober: Prober) -> None:
        prober.follow(UID, target(probe=Probe(tcp_socket=TcpSocketAction(port=1), initial_delay_seconds=30)))
        await asyncio.sleep(100)

    play(node, scene)
    first = node.times()[0]
    assert first == pytest.approx(EPOCH + 30, abs=0.1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(node.times())]
    assert len(gaps) in (6, 7)
    assert all(10 * (1 - JITTER) - 0.01 <= gap <= 10 * (1 + JITTER) + 0.01 for gap in gaps)
    assert len(set(gaps)) > 1, "those that began together spread out"


def test_a_wall_clock_that_was_set_back_since_the_start_makes_no_delay_longer() -> None:
    node = Node(after(0.2, OK))

    async def scene(prober: Prober) -> None:
        probe = Probe(tcp_socket=TcpSocketAction(port=1), initial_delay_seconds=30)
        prober.follow(UID, target(probe=probe, started_at=clock() + 300))
        await asyncio.sleep(100)

    play(node, scene)
    assert node.times()[0] == pytest.approx(EPOCH + 30, abs=0.1)


def test_a_runtime_is_woken_once_for_each_change_and_not_for_each_answer() -> None:
    answers = [OK] * 20 + [BAD] * 20 + [OK] * 20

    async def answer(_target: Target, _probe: Probe) -> ProbeResult:
        return answers.pop(0) if answers else OK

    node = Node(answer)

    async def scene(prober: Prober) -> None:
        prober.follow(UID, target())
        await asyncio.sleep(2000)
        assert prober.facts(UID, 1).readiness == Verdict(True)

    play(node, scene)
    assert len(node.changed) == 3
    assert node.counted.count(("readiness", "failure")) == 20


def test_another_task_begins_anew_and_the_answer_for_the_old_one_counts_for_nobody() -> None:
    node = Node(after(5, BAD))

    async def scene(prober: Prober) -> None:
        probe = Probe(tcp_socket=TcpSocketAction(port=1), failure_threshold=1)
        prober.follow(UID, target(pid=1, probe=probe))
        await asyncio.sleep(1)
        prober.follow(UID, target(pid=2, probe=probe))
        await asyncio.sleep(4.5)
        assert prober.facts(UID, 1) == prober.facts(UID, 2) == NOTHING_PROBED
        await asyncio.sleep(1)
        assert prober.facts(UID, 1) == NOTHING_PROBED
        assert prober.facts(UID, 2).readiness == Verdict(False, BAD.message)
        prober.follow(UID, None)
        assert prober.facts(UID, 2) == NOTHING_PROBED

    play(node, scene)


def test_a_look_in_between_changes_nothing_and_an_edited_probe_begins_anew() -> None:
    node = Node(after(0, OK))

    async def scene(prober: Prober) -> None:
        for _ in range(50):
            prober.follow(UID, target())
            await asyncio.sleep(0.1)
        assert len(node.asked) == 1
        edited = Probe(tcp_socket=TcpSocketAction(port=2), success_threshold=2)
        prober.follow(UID, target(probe=edited))
        await asyncio.sleep(0.1)
        assert len(node.asked) == 2
        assert prober.facts(UID, 1) == NOTHING_PROBED

    play(node, scene)


def test_after_a_restart_of_the_agent_the_first_questions_spread_over_a_period() -> None:
    node = Node(after(0, OK))

    async def scene(prober: Prober) -> None:
        for n in range(200):
            prober.follow(Uid(f"uid-{n}"), target(Uid(f"uid-{n}"), started_at=EPOCH - 1000))
        await asyncio.sleep(10)

    play(node, scene)
    firsts = sorted(node.times(Uid(f"uid-{n}"))[0] for n in range(200))
    assert firsts[0] < EPOCH + 1
    assert firsts[-1] > EPOCH + 9
    assert node.most_at_once <= SLOTS


def test_no_more_than_sixteen_are_asked_at_once() -> None:
    node = Node(after(0.5, OK))

    async def scene(prober: Prober) -> None:
        for n in range(100):
            prober.follow(Uid(f"uid-{n}"), target(Uid(f"uid-{n}")))
        await asyncio.sleep(4)

    play(node, scene)
    assert node.most_at_once == SLOTS == 16
    assert len({uid for _, uid, _ in node.asked}) == 100


def test_those_that_hang_never_make_the_others_wait() -> None:
    async def answer(to: Target, probe: Probe) -> ProbeResult:
        if to.uid.startswith("slow"):
            await asyncio.sleep(probe.timeout_seconds)
            return LATE
        return OK

    node = Node(answer)
    hanging = Probe(tcp_socket=TcpSocketAction(port=1), timeout_seconds=60, period_seconds=1)

    async def scene(prober: Prober) -> None:
        for n in range(100):
            prober.follow(Uid(f"slow-{n}"), target(Uid(f"slow-{n}"), probe=hanging))
        await asyncio.sleep(1000)
        began = clock()
        for n in range(20):
            prober.follow(Uid(f"fast-{n}"), target(Uid(f"fast-{n}"), started_at=clock()))
        await asyncio.sleep(100)
        for n in range(20):
            mine = node.times(Uid(f"fast-{n}"))
            assert mine[0] - began < 1
            assert max(later - earlier for earlier, later in itertools.pairwise(mine)) < 11

    play(node, scene)
    slow = {uid for _, uid, _ in node.asked if uid.startswith("slow")}
    assert len(slow) == 100, "they have their turns, too"
    assert node.most_at_once <= NAMESPACE_SLOTS


# ---------------------------------------------------------------------------------------------- at nobody's expense

Misbehaves = Callable[[int], float]
"""After how many seconds the n-th question is answered."""


def patient(*, period_seconds: int = 10, timeout_seconds: int = 300) -> Probe:
    return Probe(tcp_socket=TcpSocketAction(port=1), period_seconds=period_seconds, timeout_seconds=timeout_seconds)


def always_slow(_n: int) -> float:
    return 299


def slow_when_trusted(n: int) -> float:
    return 299 if n % 11 == 10 else 0


def slow_by_turns(n: int) -> float:
    return 299 if n % 2 else 0


def just_quick_enough(_n: int) -> float:
    return SLOW_SECONDS - 0.01


@pytest.mark.parametrize("hostile", [8, 60])
@pytest.mark.parametrize("victims_seconds", [0.0, 2.0])
@pytest.mark.parametrize(
    ("misbehaves", "seconds"),
    [(always_slow, 700), (slow_when_trusted, 700), (slow_by_turns, 700), (just_quick_enough, 60)],
)
def test_a_namespace_is_asked_on_time_whatever_another_one_does(
    hostile: int, victims_seconds: float, misbehaves: Misbehaves, seconds: int
) -> None:
    """From the first question on, also while nobody can know yet that the other's take long."""
    turns: Counter[tuple[Uid, int]] = Counter()

    async def answer(to: Target, probe: Probe) -> ProbeResult:
        takes = victims_seconds
        if to.namespace == "hostile":
            takes = misbehaves(turns[to.uid, probe.failure_threshold])
            turns[to.uid, probe.failure_threshold] += 1
        await asyncio.sleep(takes)
        return OK

    node = Node(answer)
    mine = Uid("victim")
    both = {
        kind: Probe(tcp_socket=TcpSocketAction(port=1), timeout_seconds=300, period_seconds=1, failure_threshold=n)
        for n, kind in enumerate((ProbeKind.READINESS, ProbeKind.LIVENESS), start=1)
    }

    async def scene(prober: Prober) -> None:
        for n in range(hostile):
            prober.follow(Uid(f"hostile-{n}"), target(Uid(f"hostile-{n}"), namespace="hostile", probes=both))
        await asyncio.sleep(0.5)
        prober.follow(mine, target(mine, namespace="victim", probe=patient(timeout_seconds=5)))
        await asyncio.sleep(seconds)

    play(node, scene)
    asked = node.times(mine)
    assert asked[0] - EPOCH < 2
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) < 12
    assert len(asked) >= seconds // 12
    assert node.most_at_once <= NAMESPACE_SLOTS + 2
    assert len({uid for _, uid, _ in node.asked}) == hostile + 1, "everybody has turns"


def test_slow_ones_of_many_namespaces_share_and_one_that_comes_later_need_not_wait() -> None:
    node = Node(after(299, OK))

    async def scene(prober: Prober) -> None:
        for space, n in itertools.product(range(5), range(20)):
            uid = Uid(f"{space}-{n}")
            prober.follow(uid, target(uid, namespace=f"hostile-{space}", probe=patient(period_seconds=1)))
        await asyncio.sleep(1500)
        assert node.at_once <= SLOW_SLOTS
        node.answer = by_namespace
        mine = Uid("victim")
        prober.follow(mine, target(mine, namespace="victim", probe=patient(timeout_seconds=5), started_at=clock()))
        began = clock()
        await asyncio.sleep(1000)
        assert node.times(mine)[0] - began < 2
        assert max(later - earlier for earlier, later in itertools.pairwise(node.times(mine))) < 12

    async def by_namespace(to: Target, _probe: Probe) -> ProbeResult:
        await asyncio.sleep(2 if to.namespace == "victim" else 299)
        return OK

    play(node, scene)


def test_one_that_was_slow_is_quick_again_after_ten_quick_answers() -> None:
    """Then it needs no slow slot any more: the others of its namespace hold all of them."""

    async def answer(to: Target, _probe: Probe) -> ProbeResult:
        if to.uid == UID:
            await asyncio.sleep(5 if len(node.times(UID)) == 1 else 0)
            return OK
        await asyncio.sleep(299)
        return OK

    node = Node(answer)

    async def scene(prober: Prober) -> None:
        prober.follow(UID, target(probe=patient(period_seconds=1)))
        await asyncio.sleep(30)
        for n in range(40):
            prober.follow(Uid(f"slow-{n}"), target(Uid(f"slow-{n}"), probe=patient(period_seconds=1)))
        await asyncio.sleep(1000)

    play(node, scene)
    late = [at for at in node.times(UID) if at > EPOCH + 400]
    assert len(late) > 600
    assert max(later - earlier for earlier, later in itertools.pairwise(late)) < 1.2


def test_a_question_that_never_ends_is_given_up_and_says_nothing() -> None:
    node = Node(after(10_000, OK))

    async def scene(prober: Prober) -> None:
        prober.follow(UID, target())
        await asyncio.sleep(30)
        assert prober.facts(UID, 1) == NOTHING_PROBED

    play(node, scene)
    assert ("readiness", "unknown") in node.counted


def test_a_defect_costs_one_turn_of_one_probe() -> None:
    async def answer(to: Target, _probe: Probe) -> ProbeResult:
        if to.uid == UID and len(node.times(UID)) == 1:
            raise ZeroDivisionError
        return OK

    node = Node(answer)

    async def scene(prober: Prober) -> None:
        prober.follow(UID, target())
        prober.follow(Uid("uid-2"), target(Uid("uid-2")))
        await asyncio.sleep(15)
        assert prober.facts(UID, 1).readiness == prober.facts(Uid("uid-2"), 1).readiness == Verdict(True)

    play(node, scene)


def test_nothing_is_done_while_nothing_is_due() -> None:
    """One timer for the node, whatever the number of runtimes: between two questions nobody is woken."""
    node = Node(after(0, OK))
    woken = 0

    async def scene(prober: Prober) -> None:
        nonlocal woken
        wait = prober._until_next

        async def counted() -> None:
            nonlocal woken
            woken += 1
            await wait()

        prober._until_next = counted  # type: ignore[method-assign]
        for n in range(50):
            prober.follow(
                Uid(f"uid-{n}"),
                target(Uid(f"uid-{n}"), probe=Probe(tcp_socket=TcpSocketAction(port=1), period_seconds=1000)),
            )
        await asyncio.sleep(900)

    play(node, scene)
    assert len(node.asked) == 50
    assert woken < 150
