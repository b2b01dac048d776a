"""Figures of a benchmark: percentiles, goals, and how they are written down."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rig.bench.results import Goal, Row, Timing, percentile, render_json, render_table

SAMPLES = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1)


@given(SAMPLES, st.sampled_from([50, 90, 95, 99]))
def test_a_percentile_is_the_smallest_sample_that_enough_others_do_not_exceed(samples: list[float], at: int) -> None:
    found = percentile(samples, at)
    assert found in samples
    assert sum(sample <= found for sample in samples) * 100 >= at * len(samples)
    assert sum(sample < found for sample in samples) * 100 < at * len(samples)


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("ours", "theirs", "goal", "holds"),
    [
        (90.0, 100.0, Goal(0.9, on="ratio"), True),
        (91.0, 100.0, Goal(0.9, on="ratio"), False),
        (80.0, 100.0, Goal(0.8, on="ratio", better="higher"), True),
        (79.0, 100.0, Goal(0.8, on="ratio", better="higher"), False),
        (120.0, None, Goal(120.0), True),
        (120.1, None, Goal(120.0), False),
        (0.0, None, Goal(0.0), True),
        (1.0, None, Goal(1.0, on="ratio"), None),
        (1.0, 2.0, None, None),
    ],
)
def test_a_goal_holds_or_not(ours: float, theirs: float | None, goal: Goal | None, holds: bool | None) -> None:
    assert Row("a figure", "ms", ours, 1, theirs, goal).holds is holds


def test_the_tail_is_held_against_our_own_median() -> None:
    calm = Timing("start", ours=[0.1] * 98 + [0.2] * 2, tail=True).rows()[-1]
    assert (calm.name, calm.holds) == ("start, p99", True)
    wild = Timing("start", ours=[0.1] * 98 + [0.3] * 2, tail=True).rows()[-1]
    assert wild.holds is False


def test_what_was_not_measured_has_no_rows() -> None:
    assert Timing("start", ours=[]).rows() == []


def test_json_has_the_fields_that_readers_of_results_expect() -> None:
    rows = Timing("start", [0.1, 0.2], [0.4, 0.2], ((50, Goal(1.0, on="ratio")),), notes="no network").rows()
    first, *others = json.loads(render_json(rows))
    assert first == {
        "name": "start, p50",
        "unit": "ms",
        "ours": 100.0,
        "theirs": 200.0,
        "ratio": 0.5,
        "goal": 1.0,
        "better": "lower",
        "goal_on": "ratio",
        "holds": True,
        "n": 2,
        "notes": "no network",
    }
    assert {record["holds"] for record in others} == {None}


def test_the_table_shows_what_was_missed_and_each_note_once() -> None:
    rows = [
        Row("slow", "ms", 130.0, 5, goal=Goal(120.0), notes="the same note"),
        Row("fast", "ms", 1.25, 5, theirs=2.5, goal=Goal(1.0, on="ratio"), notes="the same note"),
    ]
    lines = render_table(rows).splitlines()
    assert lines[1].split() == ["slow", "130", "ms", "-", "-", "≤", "120", "MISSED", "5", "[1]"]
    assert lines[2].split() == ["fast", "1.25", "ms", "2.5", "0.50x", "≤", "1x", "holds", "5", "[1]"]
    assert lines[3:] == ["[1] the same note"]
