"""How log lines look and where they go. Each process calls `configure` once, before anything else logs.

One line is one event with key=value fields. Ids are always under the same names (`runtime`, `uid`, `node`, `op`,
`step`), where a line has them, also in lines that kopf writes, so that `uid=…` finds one runtime's whole story. INFO tells
that story to a person; DEBUG is for whoever changes the code. Secrets never leave: see `redact`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

REDACTED = "***"

_URL_PASSWORD = re.compile(r"""([a-z][a-z0-9+.-]*://[^\s/:@"']*:)[^\s"'\x1b]+@""", re.IGNORECASE)
_KEYWORD_PASSWORD = re.compile(r"""(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s"'&\x1b]+)""", re.IGNORECASE)
_SECRET_FIELDS = frozenset({"password", "dsn", "database_url", "secret", "token", "authorization"})

_LEVELS: Mapping[str, int] = {
    "kopf.objects": logging.WARNING,  # one line per object and event otherwise: the same story told twice
    "kopf.reactor": logging.WARNING,
    "grpc": logging.WARNING,  # one line per call at debug: nothing that our own lines do not tell
    "aiohttp.access": logging.WARNING,  # a probe every few seconds is not news
}
"""Loggers of libraries that are too talkative at the process's own level."""


class LogFormat(StrEnum):
    AUTO = "auto"
    """Console on a terminal, JSON otherwise."""
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The level as the standard library counts it."""
        return logging.getLevelNamesMapping()[self.name]


def redact(text: str) -> str:
    """`text` without passwords in what looks like a connection string (`scheme://user:password@…`, `password=…`).

    When in doubt more is taken out than needed: a line that is harder to read is the smaller harm.
    """
    text = _URL_PASSWORD.sub(rf"\g<1>{REDACTED}@", text)
    return _KEYWORD_PASSWORD.sub(rf"\g<1>{REDACTED}", text)


def configure(
    level: LogLevel = LogLevel.INFO,
    form: LogFormat = LogFormat.AUTO,
    stream: TextIO | None = None,
    *,
    node: str | None = None,
) -> None:
    """Send structlog's and the standard library's lines to `stream` (standard error) in one form. `node`: in every line of
    every thread that does not name another one.

    May be called again: the last call counts.
    """
    stream = stream or sys.stderr
    console = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *_naming(node),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _mask_fields,
    ]
    handler = logging.StreamHandler(stream)
    handler.setLevel(level.number)  # a library's logger may have a level of its own, which the root's does not bind
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_object, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(console, colors=console and stream.isatty()),
                _redact_line,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.number)
    for name, quietest in _LEVELS.items():
        logging.getLogger(name).setLevel(max(quietest, level.number))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level.number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _naming(node: str | None) -> list[Processor]:
    def name(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("node", node)
        return event

    return [] if node is None else [name]


def _renderer(console: bool, *, colors: bool) -> list[Processor]:
    """Plain tracebacks in both forms: rich ones print local variables, and those may be secrets."""
    if console:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, pad_event_to=32)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _mask_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Fields that are secret by their name, whatever their value looks like."""
    for name in _SECRET_FIELDS & event.keys():
        event[name] = REDACTED
    return event


def _name_object(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """kopf marks lines about an object with `k8s_ref`: give them the names that our own lines use."""
    record: logging.LogRecord = event["_record"]
    reference = getattr(record, "k8s_ref", None)
    if isinstance(reference, Mapping):
        event["runtime"] = f"{reference.get('kind')}/{reference.get('namespace')}/{reference.get('name')}"
        event["uid"] = reference.get("uid")
    return event


def _redact_line(_logger: Any, _method: str, line: Any) -> str:
    """Last of all, over the rendered line: whatever object a secret came in (an exception, a repr), it is text here."""
    return redact(line if isinstance(line, str) else line.decode())
