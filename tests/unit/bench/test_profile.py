"""Reading a life's course from a process's log."""

from __future__ import annotations

import json

import pytest

from rig.bench.profile import Span, Window, log_spans, profile_rows, render_profile

NOON = 1_767_268_800.0
"""2026-01-01T12:00:00Z"""
MICROSECOND = 1e-6


def line(event: str, second: str, uid: str = "u-1", **fields: object) -> str:
    return json.dumps({"event": event, "uid": uid, "timestamp": f"2026-01-01T12:00:{second}Z", **fields})


WINDOW = Window("u-1", NOON, NOON + 10)


def test_a_step_begins_its_duration_before_its_line() -> None:
    (step,) = log_spans([line("step_done", "00.150000", step="StartTask", seconds=0.1)], [WINDOW])
    assert step.name == "step StartTask"
    assert step.begin == pytest.approx(0.05, abs=MICROSECOND)
    assert step.end == pytest.approx(0.15, abs=MICROSECOND)


def test_a_step_that_is_done_twice_in_a_window_is_told_apart() -> None:
    lines = [line("step_done", second, step="Note", seconds=0.001) for second in ("00.100000", "00.200000")]
    assert [span.name for span in log_spans(lines, [WINDOW])] == ["step Note", "step Note #2"]
    parts = [Window("u-1", NOON, NOON + 0.15), Window("u-1", NOON + 0.15, NOON + 1)]
    assert [span.name for span in log_spans(lines, parts)] == ["step Note", "step Note"]


def test_other_runtimes_other_times_and_lines_that_are_no_json_are_left_out() -> None:
    lines = [
        "Traceback (most recent call last):",
        line("bound", "00.010000", uid="u-2"),
        line("bound", "00.020000"),
        line("released", "10.000000"),
    ]
    assert [span.name for span in log_spans(lines, [WINDOW])] == ["log bound"]


SPANS = [
    Span("late", 0.05, 0.06),
    Span("early", 0.0, 0.005),
    Span("late", 0.07, 0.09),
    Span("early", 0.001, 0.002),
    Span("late", 0.06, 0.09),
]


def test_rows_come_in_the_order_of_their_median_beginning() -> None:
    rows = profile_rows("start", SPANS)
    assert [(row.name, row.n) for row in rows] == [("start: early", 2), ("start: late", 3)]
    assert rows[1].ours == pytest.approx(20.0)
    assert "60.0 ms after" in rows[1].notes


def test_the_table_has_a_part_for_each_chapter() -> None:
    lines = render_profile({"start": SPANS, "purge": SPANS[:1]}).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["---", "start"],
        ["early", "0.0"],
        ["late", "60.0"],
        ["---", "purge"],
        ["late", "50.0"],
    ]
