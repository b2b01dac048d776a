"""However questions come, turn slow and end: limits hold, and nobody who is owed a turn is passed over."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.reconcile.turns import NAMESPACE_SLOTS, SLOTS, SLOW_SLOTS, Question, Turns

NAMESPACES = ("a", "b", "c", "d")
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from(NAMESPACES), st.booleans(), st.integers(1, 60)),
        st.tuples(st.sampled_from(["end", "turn"]), st.integers(0, 200), st.just(False), st.integers(1, 30)),
    ),
    max_size=20,
)


def start_all(turns: Turns[Question]) -> list[Question]:
    started = []
    while (question := turns.next()) is not None:
        started.append(question)
    return started


@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_limits_hold_and_every_namespace_has_its_part(events: list[tuple[str, str | int, bool, int]]) -> None:
    turns: Turns[Question] = Turns()
    waiting: list[Question] = []
    under_way: list[Question] = []
    for event, which, slow, times in events:
        for _ in range(times):
            if isinstance(which, str):
                waiting.append(Question(which, slow))
                turns.wait(waiting[-1])
            elif quick := [question for question in under_way if event == "end" or not question.slow]:
                question = quick[which % len(quick)]
                if event == "turn":
                    turns.turn_slow(question)
                else:
                    under_way.remove(question)
                    turns.end(question)
        for question in start_all(turns):
            waiting.remove(question)
            under_way.append(question)
        quick_under_way = sum(not question.slow for question in under_way)
        slow_of = Counter(question.namespace for question in under_way if question.slow)
        all_of = Counter(question.namespace for question in under_way)
        assert quick_under_way <= SLOTS
        for namespace in NAMESPACES:
            assert all_of[namespace] <= NAMESPACE_SLOTS + SLOW_SLOTS
            if any(question.slow for question in waiting if question.namespace == namespace):
                assert slow_of[namespace] >= SLOW_SLOTS // (1 + len(NAMESPACES))
            if any(not question.slow for question in waiting if question.namespace == namespace):
                assert quick_under_way == SLOTS or all_of[namespace] >= NAMESPACE_SLOTS


def test_quick_ones_are_taken_from_one_namespace_after_the_other() -> None:
    turns: Turns[Question] = Turns()
    for _ in range(100):
        turns.wait(Question("a", slow=False))
    for namespace in ("b", "c"):
        turns.wait(Question(namespace, slow=False))
    started = [question.namespace for question in start_all(turns)]
    assert len(started) == SLOTS
    assert sorted(started[:3]) == ["a", "b", "c"]


def test_one_that_turned_slow_gives_its_slot_to_the_next() -> None:
    turns: Turns[Question] = Turns()
    for _ in range(SLOTS + 1):
        turns.wait(Question("a", slow=False))
    started = start_all(turns)
    assert len(started) == SLOTS
    turns.turn_slow(started[0])
    (last,) = start_all(turns)
    turns.end(started[0])
    assert turns.next() is None
    assert not last.slow


def test_a_part_is_left_for_the_namespace_that_comes_next() -> None:
    turns: Turns[Question] = Turns()
    for _ in range(100):
        turns.wait(Question("a", slow=True))
    assert len(start_all(turns)) == SLOW_SLOTS // 2
    for _ in range(100):
        turns.wait(Question("b", slow=True))
    assert Counter(question.namespace for question in start_all(turns)) == {"b": SLOW_SLOTS // 3}
