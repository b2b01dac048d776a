"""Every line of every module: its event is one name in snake_case, and a uid is called `uid`. Read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from perdure.plan.health import HealthKind

SOURCE = Path(__file__).resolve().parents[3] / "controller" / "perdure"
LOGGERS = {"log", "_log", "_logger", "logger"}
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
NAME = re.compile("[a-z][a-z0-9]*(_[a-z0-9]+)*")
OF_AN_ENUM = {"row.kind.value": HealthKind}
"""Events that are no literal, and whose names they are."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=logger), attr=level)):
                    if logger in LOGGERS and level in LEVELS:
                        yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def test_an_event_is_one_name_in_snake_case() -> None:
    seen = 0
    for where, call in calls():
        seen += 1
        (event,) = call.args
        if isinstance(event, ast.Constant):
            assert NAME.fullmatch(str(event.value)), f"{where}: {event.value!r}"
        else:
            assert ast.unparse(event) in OF_AN_ENUM, f"{where}: {ast.unparse(event)} is no literal"
    assert seen > 80
    assert all(NAME.fullmatch(it.value) for kind in OF_AN_ENUM.values() for it in kind)


def test_a_uid_is_always_called_so() -> None:
    for where, call in calls():
        for field in call.keywords:
            if re.search(r"(^|[._])uid$", ast.unparse(field.value)):
                assert field.arg == "uid", f"{where}: {field.arg}={ast.unparse(field.value)}"
