"""One answer that an object is gone is not enough."""

from __future__ import annotations

from perdure.api.names import Uid
from perdure.reconcile.absences import Absences

ONE, TWO = Uid("uid-1"), Uid("uid-2")


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[tuple[Uid, float]] = []
        self.absences = Absences(60.0, lambda uid, delay: self.asked.append((uid, delay)), lambda: self.now)


def test_it_is_believed_the_second_time_after_the_grace_period() -> None:
    bench = Bench()
    assert not bench.absences.confirmed(ONE)
    bench.now += 59
    assert not bench.absences.confirmed(ONE)
    bench.now += 1
    assert bench.absences.confirmed(ONE)
    assert bench.asked == [(ONE, 60.0), (ONE, 1.0)], "another look is asked for until it is believed"


def test_whoever_was_seen_meanwhile_is_counted_anew() -> None:
    bench = Bench()
    bench.absences.confirmed(ONE)
    bench.now += 60
    bench.absences.over(ONE)
    assert not bench.absences.confirmed(ONE)


def test_each_is_counted_by_itself() -> None:
    bench = Bench()
    bench.absences.confirmed(ONE)
    bench.now += 60
    assert not bench.absences.confirmed(TWO)
    assert bench.absences.confirmed(ONE)
