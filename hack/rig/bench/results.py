"""What a benchmark says: one row per figure, as a table for people and as JSON for programs.

Called by every benchmark. Pure: nothing here reads a clock or a file.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TAIL_FACTOR = 2.5
"""p99 of one operation should be at most this many times its p50."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be: ours alone, or its ratio to theirs."""

    value: float
    on: Literal["ours", "ratio"] = "ours"
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours; ``theirs`` where something else did the same work in the same run."""

    name: str
    unit: str
    ours: float
    n: int
    theirs: float | None = None
    goal: Goal | None = None
    notes: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by theirs."""
        return self.ours / self.theirs if self.theirs else None

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None where there is none, or nothing to compare with."""
        if self.goal is None:
            return None
        value = self.ours if self.goal.on == "ours" else self.ratio
        if value is None:
            return None
        return value <= self.goal.value if self.goal.better == "lower" else value >= self.goal.value


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least ``percent`` % of all are not above (nearest rank). Raises ValueError on none."""
    if not samples:
        raise ValueError("there is no percentile of no samples")
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of many single operations, ours and perhaps theirs, and what its percentiles should be.

    ``goals`` maps a percentile to its goal in milliseconds or as a ratio; ``tail`` holds p99 against our own p50.
    """

    name: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    goals: tuple[tuple[int, Goal], ...] = ()
    tail: bool = False
    notes: str = ""

    def rows(self) -> list[Row]:
        """p50, p95, p99 and what has a goal besides, in milliseconds; none where nothing was measured."""
        if not self.ours:
            return []
        goals = dict(self.goals)
        if self.tail:
            goals[99] = Goal(round(TAIL_FACTOR * percentile(self.ours, 50) * 1000, 1))
        return [
            Row(
                name=f"{self.name}, p{percent}",
                unit="ms",
                ours=percentile(self.ours, percent) * 1000,
                theirs=percentile(self.theirs, percent) * 1000 if self.theirs else None,
                goal=goals.get(percent),
                n=len(self.ours),
                notes=self.notes,
            )
            for percent in sorted({50, 95, 99, *goals})
        ]


def render_json(rows: Sequence[Row]) -> str:
    """The content of ``bench-results/NAME.json``."""
    return json.dumps([_record(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def _record(row: Row) -> dict[str, object]:
    goal = row.goal
    return {
        "name": row.name,
        "unit": row.unit,
        "ours": round(row.ours, 3),
        "theirs": None if row.theirs is None else round(row.theirs, 3),
        "ratio": None if row.ratio is None else round(row.ratio, 3),
        "goal": goal.value if goal else None,
        "better": goal.better if goal else None,
        "goal_on": goal.on if goal else None,
        "holds": row.holds,
        "n": row.n,
        "notes": row.notes,
    }


def render_table(rows: Sequence[Row]) -> str:
    """The same for people; notes, which are long, stand below, each once."""
    notes: dict[str, int] = {}
    lines = [("", "ours", "theirs", "ratio", "goal", "", "n", "")]
    for row in rows:
        mark = notes.setdefault(row.notes, len(notes) + 1) if row.notes else None
        lines.append(
            (
                row.name,
                f"{_short(row.ours)} {row.unit}",
                _short(row.theirs),
                f"{row.ratio:.2f}x" if row.ratio is not None else "-",
                _goal(row.goal),
                {True: "holds", False: "MISSED", None: ""}[row.holds],
                str(row.n),
                f"[{mark}]" if mark else "",
            )
        )
    return "\n".join([*columns(lines), *(f"[{mark}] {text}" for text, mark in notes.items())]) + "\n"


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells of equal number, aligned: the first column left, the others right."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return "-"
    sign = "≤" if goal.better == "lower" else "≥"
    return f"{sign} {_short(goal.value)}{'x' if goal.on == 'ratio' else ''}"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.2f}".rstrip("0").removesuffix(".")
