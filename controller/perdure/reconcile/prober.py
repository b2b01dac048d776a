"""Asks the probes of all runtimes of a node: who is due when, and what as many answers in a row come to (`turns`: who may
be asked at once).

One heap of due times and one task for the whole node, whatever the number of runtimes. The reconciler says whom to ask
after each look (`follow`) and reads verdicts with the next (`facts`); a verdict that changes wakes the runtime, an answer
that changes nothing costs nobody anything.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import structlog

from perdure.api.names import Uid
from perdure.api.probes import Probe
from perdure.plan.health import MESSAGE_CHARACTERS, NOTHING_PROBED, ProbeFacts, ProbeKind, Verdict
from perdure.reconcile.asking import Target
from perdure.reconcile.ports.probing import ProbeOutcome, ProbeResult
from perdure.reconcile.probe import Probe as Telemetry
from perdure.reconcile.turns import SLOW_SECONDS, Question, Turns

QUICK_AGAIN = 10
"""Quick answers in a row after which a probe that was slow counts as quick."""
OVERTIME_SECONDS = 20.0
"""How long after its timeout a question may still take to be cleared away (a command and its children are killed)."""
JITTER = 0.05
"""Share of a period by which each question comes earlier or later, so that runtimes that started together spread out."""

Ask = Callable[[Target, Probe], Awaitable[ProbeResult]]

log = structlog.get_logger(__name__)


class Streak:
    """Results in a row, and the verdict that they have come to: it changes only when a threshold is reached."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._successes = 0
        self._failures = 0
        self.verdict: Verdict | None = None

    def add(self, result: ProbeResult) -> bool:
        """Count a result; whether the verdict is another one now. What could not be asked breaks no row."""
        before = self.verdict.passed if self.verdict is not None else None
        match result.outcome:
            case ProbeOutcome.UNKNOWN:
                return False
            case ProbeOutcome.SUCCESS:
                self._successes, self._failures = self._successes + 1, 0
                if self._successes >= self._probe.success_threshold and before is not True:
                    self.verdict = Verdict(True)
            case ProbeOutcome.FAILURE:
                self._successes, self._failures = 0, self._failures + 1
                if self._failures >= self._probe.failure_threshold and before is not False:
                    self.verdict = Verdict(False, result.message[:MESSAGE_CHARACTERS])
        return self.verdict is not None and self.verdict.passed is not before


@dataclass(slots=True, eq=False)
class _Series:
    """One probe of one task."""

    probe: Probe
    streak: Streak
    current: bool = True
    """False: nobody waits for what is still under way."""
    slow: bool = False
    """Known by what it took; a new one is not."""
    quick_answers: int = 0
    """Since it was slow last."""

    def took(self, seconds: float, late: bool) -> None:
        if late or seconds >= SLOW_SECONDS:
            self.slow, self.quick_answers = True, 0
        else:
            self.quick_answers += 1
            self.slow = self.slow and self.quick_answers < QUICK_AGAIN


@dataclass(slots=True, eq=False)
class _Question(Question):
    """One turn of one series. `began`: on the loop's clock, once it is under way."""

    uid: Uid
    kind: ProbeKind
    series: _Series
    began: float = 0.0
    turning: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Followed:
    target: Target
    series: dict[ProbeKind, _Series] = field(default_factory=dict)


class Prober:
    """`run` is one task of the agent. `changed` is called when a verdict is another one; `now`: seconds since the epoch."""

    def __init__(
        self,
        ask: Ask,
        changed: Callable[[Uid], None],
        telemetry: Telemetry,
        now: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._ask = ask
        self._changed = changed
        self._telemetry = telemetry
        self._now = now
        self._random = rng or random.Random()
        self._followed: dict[Uid, _Followed] = {}
        self._due: list[tuple[float, int, Uid, ProbeKind, _Series]] = []
        self._numbers = count()
        self._turns: Turns[_Question] = Turns()
        self._under_way: set[asyncio.Task[ProbeResult]] = set()
        self._wake = asyncio.Event()

    # ------------------------------------------------------------------------------------------ the reconciler's side

    def follow(self, uid: Uid, target: Target | None) -> None:
        """Ask this task by these probes from now on, and nothing else of this runtime. None: nothing."""
        known = self._followed.get(uid)
        if known is not None and (target is None or known.target.pid != target.pid):
            for series in known.series.values():
                series.current = False
            del self._followed[uid]
            known = None
        if target is None:
            return
        if known is None:
            known = self._followed[uid] = _Followed(target)
        known.target = target
        for kind in [kind for kind, series in known.series.items() if target.probes.get(kind) != series.probe]:
            known.series.pop(kind).current = False
        for kind, probe in target.probes.items():
            if kind not in known.series:
                series = known.series[kind] = _Series(probe, Streak(probe))
                self._put(self._first(target, probe), uid, kind, series)

    def facts(self, uid: Uid, pid: int) -> ProbeFacts:
        """What has been come to about this very task."""
        known = self._followed.get(uid)
        if known is None or known.target.pid != pid:
            return NOTHING_PROBED

        def verdict(kind: ProbeKind) -> Verdict | None:
            series = known.series.get(kind)
            return series.streak.verdict if series is not None else None

        return ProbeFacts(verdict(ProbeKind.STARTUP), verdict(ProbeKind.READINESS), verdict(ProbeKind.LIVENESS))

    def _first(self, target: Target, probe: Probe) -> float:
        """Seconds until it is asked for the first time. After a restart of the agent all tasks are found at once, and
        nothing hurries: the first questions to those that are not young spread over a period. Wall clocks may be set: what
        seems to begin only later began just now."""
        delay = min(target.started_at - self._now(), 0.0) + probe.initial_delay_seconds
        return self._random.random() * probe.period_seconds if delay < -probe.period_seconds else max(0.0, delay)

    # ------------------------------------------------------------------------------------------ the clock's side

    async def run(self) -> None:
        """Ask whoever is due, for ever. Questions under way end with it."""
        try:
            while True:
                self._wake.clear()
                self._take_due()
                self._start_ready()
                await self._until_next()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _until_next(self) -> None:
        delay = self._due[0][0] - asyncio.get_running_loop().time() if self._due else None
        if delay is not None and delay <= 0:
            return
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    def _put(self, delay: float, uid: Uid, kind: ProbeKind, series: _Series) -> None:
        due = asyncio.get_running_loop().time() + delay
        heapq.heappush(self._due, (due, next(self._numbers), uid, kind, series))
        self._wake.set()

    def _take_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._due and self._due[0][0] <= now:
            _, _, uid, kind, series = heapq.heappop(self._due)
            if series.current:
                self._turns.wait(_Question(self._followed[uid].target.namespace, series.slow, uid, kind, series))

    def _start_ready(self) -> None:
        while (question := self._turns.next()) is not None:
            if question.series.current:
                self._start(question)
            else:
                self._turns.end(question)

    def _start(self, question: _Question) -> None:
        loop = asyncio.get_running_loop()
        question.began = loop.time()
        if not question.slow:
            question.turning = loop.call_later(SLOW_SECONDS, self._turn_slow, question)
        asking = self._answer(self._followed[question.uid].target, question.series.probe)
        task = asyncio.create_task(asking, name=f"probe-{question.kind.value}-{question.uid}")
        self._under_way.add(task)
        task.add_done_callback(partial(self._done, question))

    def _turn_slow(self, question: _Question) -> None:
        question.turning = None
        self._turns.turn_slow(question)
        self._wake.set()

    async def _answer(self, target: Target, probe: Probe) -> ProbeResult:
        try:
            async with asyncio.timeout(probe.timeout_seconds + OVERTIME_SECONDS):
                return await self._ask(target, probe)
        except TimeoutError:
            return ProbeResult(ProbeOutcome.UNKNOWN, "it could not be asked to the end: the node hangs", late=True)

    def _done(self, question: _Question, task: asyncio.Task[ProbeResult]) -> None:
        """A defect in asking is logged, costs this probe one turn, and no other anything."""
        uid, kind, series = question.uid, question.kind, question.series
        self._under_way.discard(task)
        if question.turning is not None:
            question.turning.cancel()
        self._turns.end(question)
        self._wake.set()
        if task.cancelled() or not series.current:
            return
        error = task.exception()
        if error is not None:
            log.error("probe_crashed", uid=uid, probe=kind.value, error=repr(error))
            result = ProbeResult(ProbeOutcome.UNKNOWN, repr(error))
        else:
            result = task.result()
        self._telemetry.probed(kind.value, result.outcome.value)
        log.debug("probed", uid=uid, probe=kind.value, result=result.outcome.value, message=result.message)
        elapsed = asyncio.get_running_loop().time() - question.began
        series.took(elapsed, result.late)
        if series.streak.add(result):
            self._changed(uid)
        period = series.probe.period_seconds * self._random.uniform(1 - JITTER, 1 + JITTER)
        self._put(max(0.0, period - elapsed), uid, kind, series)
