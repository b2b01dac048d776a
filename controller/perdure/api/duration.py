"""Durations as a spec writes them, such as `720h`, `1h30m` or `0s`: read without loss, and refused where they are absurd.

Called when a runtime is parsed. The same strings are accepted as by the pattern in `crds/`.
"""

from __future__ import annotations

import re

NEVER = "Never"
MAX_SECONDS = 10 * 365 * 86_400
"""Ten years: whoever means longer means Never."""

_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_WHOLE = re.compile(r"(?:[0-9]{1,9}h)?(?:[0-9]{1,9}m)?(?:[0-9]{1,9}s)?(?:[0-9]{1,9}ms)?")
_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_HOW = f"write hours, minutes, seconds and milliseconds in this order, such as 720h, 1h30m or 0s, or {NEVER}"


def parse_ttl(text: str) -> float | None:
    """Seconds, to the millisecond; None for `Never`. Raises `ValueError`, whose message says what to write."""
    if text == NEVER:
        return None
    if text.startswith("-"):
        raise ValueError(f"{text!r} is negative; {_HOW}")
    if not text or _WHOLE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a duration; {_HOW}")
    milliseconds = sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text))
    if milliseconds > MAX_SECONDS * 1000:
        raise ValueError(f"{text!r} is longer than ten years; write {NEVER}")
    return milliseconds / 1000
