"""Points in time on the command line: exact, in UTC, whatever clocks people have on the wall."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from perdure.cli.moments import parse_moment

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 29, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("1w", timedelta(weeks=1)),
        ("1d12h", timedelta(hours=36)),
        ("0s", timedelta()),
    ],
)
def test_how_long_ago(text: str, span: timedelta) -> None:
    assert parse_moment(text, NOW) == NOW - span


@pytest.mark.parametrize(
    "spring_or_autumn", [datetime(2026, 3, 29, 12, tzinfo=BERLIN), datetime(2026, 10, 25, 12, tzinfo=BERLIN)]
)
def test_a_day_ago_is_24_hours_ago_also_when_the_clocks_were_changed(spring_or_autumn: datetime) -> None:
    ago = parse_moment("1d", spring_or_autumn)
    assert ago.tzinfo is UTC
    assert spring_or_autumn.astimezone(UTC) - ago == timedelta(hours=24)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-05-01", "2026-05-01T00:00:00"),
        ("2026-05-01T08:00:00Z", "2026-05-01T08:00:00"),
        ("2026-05-01t08:00:00z", "2026-05-01T08:00:00"),
        ("2026-05-01 08:00:00.25+02:00", "2026-05-01T06:00:00.250000"),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00"),  # the first half past two of that night
        ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00"),  # and the second
        ("2026-03-29T02:30:00+01:00", "2026-03-29T01:30:00"),  # a time that no clock in Berlin showed
    ],
)
def test_an_exact_time(text: str, utc: str) -> None:
    moment = parse_moment(text, NOW)
    assert moment.replace(tzinfo=None).isoformat() == utc
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no point in time such as"),
        (" ", "no point in time such as"),
        ("2", "no point in time such as"),
        ("2x", "no point in time such as"),
        ("-2h", "no point in time such as"),
        ("1.5h", "no point in time such as"),
        ("h", "no point in time such as"),
        ("٣d", "no point in time such as"),
        ("2026-05", "no point in time such as"),
        ("20260501", "no point in time such as"),
        ("2026-02-30", "no point in time: day is out of range"),
        ("2026-05-01T25:00:00Z", "no point in time: hour must be"),
        ("2026-05-01T08:00:00", "does not say in which time zone: add Z"),
        ("0001-01-01T00:00:00+14:00", "no point in time: date value out of range"),
        ("999999w", "ago is before the calendar begins"),
        ("99999999999999999999s", "ago is before the calendar begins"),
    ],
)
def test_what_is_none_is_refused_with_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_moment(text, NOW)
