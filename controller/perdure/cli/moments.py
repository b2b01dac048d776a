"""Points in time on a command line: RFC 3339, a day, or how long ago. For options such as `--since`.

Everything is UTC: "2d" ago is 48 hours ago, also where the clocks were put forward in between.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

EXAMPLES = "such as 2h, 3d, 1d12h, 2026-05-01 (UTC) or 2026-05-01T08:00:00+02:00"

_AGO = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII)


def parse_moment(text: str, now: datetime) -> datetime:
    """In UTC. Raises ValueError, which says what is wrong with `text`."""
    if text and (ago := _AGO.fullmatch(text)):
        span = {unit: int(number) for unit, number in zip(_UNITS, ago.groups(), strict=True) if number}
        try:
            return now.astimezone(UTC) - timedelta(**span)
        except OverflowError as error:
            raise ValueError(f"{text!r} ago is before the calendar begins") from error
    exact = _RFC_3339.fullmatch(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    if exact is None:
        raise ValueError(f"{text!r} is no point in time {EXAMPLES}")
    if exact[1] is None:
        raise ValueError(f"{text!r} does not say in which time zone: add Z for UTC, or an offset such as +02:00")
    try:
        return datetime.fromisoformat(exact[0].upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no point in time: {error}") from error


def moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    """Callback of an option. Raises `BadParameter`."""
    if value is None:
        return None
    try:
        return parse_moment(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
