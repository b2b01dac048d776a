"""Operations as people and programs read them: the output of `perdure history`, all at once or line after line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from perdure.cli.output import Cell, LineTable, print_json, print_json_line, print_table

if TYPE_CHECKING:
    from perdure.ledger.history import HistoryRow

UNDER_WAY = "under_way"
"""The outcome of what has none yet."""
SHORTEST_UID = 8
_OUTCOME_STYLES = {"success": "green", "failure": "red", "superseded": "dim"}


class OperationsView:
    """`all` prints one answer, newest first; `more` is called again and again, and prints each row as it comes."""

    def __init__(self, output: str, *, names: bool, namespaces: bool) -> None:
        """`output`: table, wide or json. `names`, `namespaces`: whether the rows are of several."""
        self._json = output == "json"
        self._wide = output == "wide"
        self._names = names
        self._namespaces = namespaces
        self._lines = LineTable(self._columns())

    def all(self, rows: Sequence[HistoryRow]) -> None:
        if self._json:
            print_json(_builtins(rows))
        elif rows:
            print_table(self._columns(), self._cells(rows))

    def more(self, rows: Sequence[HistoryRow]) -> None:
        if self._json:
            for row in _builtins(rows):
                print_json_line(row)
        else:
            self._lines.add(self._cells(rows))

    def _columns(self) -> list[str]:
        columns = ["TIME"]
        columns += ["NAMESPACE"] if self._namespaces else []
        columns += ["RUNTIME"] if self._names else []
        columns += ["UID", "OP", "SOURCE", "OUTCOME", "CODE", "DURATION"]
        columns += ["NODE", "PHASES", "IMAGE", "SNAPSHOT", "CORRELATION"] if self._wide else []
        return [*columns, "MESSAGE"]

    def _cells(self, rows: Sequence[HistoryRow]) -> list[list[Cell]]:
        length = distinct_length(row.uid for row in rows)
        return [self._row(row, row.uid[:length]) for row in rows]

    def _row(self, row: HistoryRow, uid: str) -> list[Cell]:
        at = row.started_at or row.finished_at
        cells = [Cell(at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else "-")]
        cells += [Cell(row.namespace)] if self._namespaces else []
        cells += [Cell(f"{row.kind.short}/{row.name}")] if self._names else []
        cells += [
            Cell(uid, "cyan"),
            Cell(row.op or "?"),
            Cell(row.source or "?", "dim"),
            _outcome(row),
            Cell(row.error_code or "-"),
            Cell(duration(row.finished_at - row.started_at) if row.finished_at and row.started_at else "-"),
        ]
        if self._wide:
            phases = f"{row.before or '-'} → {row.after or '-'}"
            texts = (row.node_name, phases, row.image, row.snapshot_key, row.correlation)
            cells += [Cell(text or "-") for text in texts]
        return [*cells, Cell(row.message or "")]


def distinct_length(uids: Iterable[str]) -> int:
    """How many characters of each uid tell all of them apart; `SHORTEST_UID` at least."""
    different = set(uids)
    length = SHORTEST_UID
    while len({uid[:length] for uid in different}) < len(different):
        length += 1
    return length


def _builtins(rows: Sequence[HistoryRow]) -> list[dict[str, Any]]:
    import msgspec

    built: list[dict[str, Any]] = msgspec.to_builtins(rows)
    return built


def _outcome(row: HistoryRow) -> Cell:
    if row.outcome is None:
        return Cell("under way", "yellow")
    return Cell(row.outcome, _OUTCOME_STYLES.get(row.outcome, ""))


def duration(span: timedelta) -> str:
    """As a person says it: `83ms`, `1.2s`, `2m05s`, `3h20m`, `4d02h`."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"
