"""Whose turn it is to be asked by a probe: quick ones and slow ones apart, and no namespace at another's expense.

Called by the prober. The quick have slots together, one namespace after the other, and none is held for longer than
`SLOW_SECONDS`: what takes longer is counted among the slow from then on. Of the slow, how many of a namespace are under
way depends on that namespace and on the number of namespaces, never on what those of others do.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

SLOTS = 16
"""Quick questions that are under way at once, at most."""
SLOW_SECONDS = 1.0
"""What takes longer is slow."""
SLOW_SLOTS = 24
"""Shared equally by the namespaces that have slow questions now, and one more: that part is free for whoever comes next."""
NAMESPACE_SLOTS = 48
"""Questions of one namespace under way at once, at most, those among them that nobody knew to be slow when they began."""


@dataclass(slots=True, eq=False)
class Question:
    """One that waits or is under way."""

    namespace: str
    slow: bool
    """Whether it counts as slow: known to be before it began, or found to be since."""


Q = TypeVar("Q", bound=Question)


class Turns(Generic[Q]):
    """Without a clock and without I/O."""

    def __init__(self) -> None:
        self._quick: _Line[Q] = _Line()
        self._slow: _Line[Q] = _Line()
        self._quick_under_way = 0
        self._slow_of: Counter[str] = Counter()
        self._all_of: Counter[str] = Counter()

    def wait(self, question: Q) -> None:
        (self._slow if question.slow else self._quick).put(question)

    def next(self) -> Q | None:
        """Who is to be asked now, and counts as under way until `end`. None: nobody, before one of them ends or turns."""
        question = None
        if self._quick_under_way < SLOTS:
            question = self._quick.take(lambda namespace: self._all_of[namespace] < NAMESPACE_SLOTS)
        if question is None:
            share = self._share()
            question = self._slow.take(lambda namespace: self._slow_of[namespace] < share)
        if question is not None:
            self._count(question, 1)
        return question

    def _share(self) -> int:
        """Slow questions that one namespace may have under way."""
        return max(1, SLOW_SLOTS // (1 + len({*self._slow.namespaces, *self._slow_of})))

    def turn_slow(self, question: Q) -> None:
        """One that is under way has been so for `SLOW_SECONDS`."""
        self._count(question, -1)
        question.slow = True
        self._count(question, 1)

    def end(self, question: Q) -> None:
        self._count(question, -1)

    def _count(self, question: Q, by: int) -> None:
        _add(self._all_of, question.namespace, by)
        if question.slow:
            _add(self._slow_of, question.namespace, by)
        else:
            self._quick_under_way += by


class _Line(Generic[Q]):
    """Those who wait: of each namespace in the order in which they came, and one namespace after the other."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Q]] = OrderedDict()

    @property
    def namespaces(self) -> frozenset[str]:
        return frozenset(self._waiting)

    def put(self, question: Q) -> None:
        self._waiting.setdefault(question.namespace, deque()).append(question)

    def take(self, may: Callable[[str], bool]) -> Q | None:
        """The first of the namespace that has waited longest for its turn among those that `may` have one."""
        namespace = next(filter(may, self._waiting), None)
        if namespace is None:
            return None
        waiting = self._waiting[namespace]
        question = waiting.popleft()
        self._waiting.move_to_end(namespace)
        if not waiting:
            del self._waiting[namespace]
        return question


def _add(counts: Counter[str], namespace: str, by: int) -> None:
    """Keeps no namespace of which nothing is under way."""
    counts[namespace] += by
    if not counts[namespace]:
        del counts[namespace]
