"""Health events as people and programs read them: the output of `perdure history --health`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from perdure.cli.operations_view import distinct_length
from perdure.cli.output import Cell, print_json, print_table

if TYPE_CHECKING:
    from perdure.ledger.health_history import HealthHistoryRow

_STYLES = {"container_started": "dim", "probe_recovered": "green"}


def print_health(rows: Sequence[HealthHistoryRow], output: str, *, names: bool, namespaces: bool) -> None:
    """`output`: table, wide or json. `names`, `namespaces`: whether the rows are of several."""
    if output == "json":
        import msgspec

        print_json(msgspec.to_builtins(rows))
        return
    if not rows:
        return
    columns = ["TIME", *(["NAMESPACE"] if namespaces else []), *(["RUNTIME"] if names else [])]
    columns += ["UID", "EVENT", "PROBE", "CODE", *(["NODE"] if output == "wide" else []), "MESSAGE"]
    length = distinct_length(row.uid for row in rows)
    print_table(columns, [_row(row, length, output, names=names, namespaces=namespaces) for row in rows])


def _row(row: HealthHistoryRow, length: int, output: str, *, names: bool, namespaces: bool) -> list[Cell]:
    cells = [Cell(f"{row.happened_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}")]
    cells += [Cell(row.namespace)] if namespaces else []
    cells += [Cell(f"{row.kind.short}/{row.name}")] if names else []
    code = str(row.exit_code) if row.exit_code is not None else "-"
    cells += [
        Cell(row.uid[:length]),
        Cell(row.event, _STYLES.get(row.event, "red")),
        Cell(row.probe or "-"),
        Cell(code),
    ]
    cells += [Cell(row.node_name)] if output == "wide" else []
    return [*cells, Cell(row.message or "")]
