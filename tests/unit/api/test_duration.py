"""Durations of a spec: exact where they are good, and refused with a message that helps where they are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from perdure.api.duration import MAX_SECONDS, parse_ttl
from perdure.api.runtime import RuntimeSpec, parse_runtime

CRDS = Path(__file__).parents[3] / "crds"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Never", None),
        ("0s", 0.0),
        ("720h", 720 * 3600.0),
        ("1h30m", 5400.0),
        ("90s", 90.0),
        ("1500ms", 1.5),
        ("1h1m1s1ms", 3661.001),
        ("87600h", float(MAX_SECONDS)),
    ],
)
def test_a_good_duration_is_read_as_it_is_meant(text: str, seconds: float | None) -> None:
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "-5s", "never", "1d", "1m1h", " 5s", "5s ", "1.5h", "5S", "9" * 40 + "h", "٣s"]
)
def test_a_bad_duration_is_refused_and_the_message_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="such as 720h"):
        parse_ttl(text)


@pytest.mark.parametrize("text", ["87600h1ms", "999999999h"])
def test_an_absurd_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write Never"):
        parse_ttl(text)


@given(st.integers(0, 87599), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_no_millisecond_is_lost(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    read = parse_ttl(f"{hours}h{minutes}m{seconds}s{milliseconds}ms")
    assert read is not None
    assert round(read * 1000) == ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds


def test_the_default_is_thirty_days() -> None:
    assert RuntimeSpec(image="x").stopped_ttl_seconds == 30 * 86_400


@pytest.mark.parametrize("text", ["soon", "-1h", "999999h", 5])
def test_an_object_with_a_bad_one_says_so(text: object) -> None:
    """One that was stored under an older CRD."""
    metadata = {"namespace": "agents", "name": "ada", "uid": "1"}
    runtime = parse_runtime({"kind": "BotRuntime", "metadata": metadata, "spec": {"image": "x", "stoppedTTL": text}})
    assert runtime.invalid is not None
    assert "stoppedTTL" in runtime.invalid


def _pattern(path: str) -> str:
    (version,) = yaml.safe_load((CRDS / path).read_text())["spec"]["versions"]
    node = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["stoppedTTL"]
    return str(node["pattern"])


PATTERNS = tuple(map(_pattern, ("botruntimes.yaml", "gameruntimes.yaml")))


def _refusal(text: str) -> str:
    try:
        parse_ttl(text)
    except ValueError as error:
        return str(error)
    return ""


@given(st.from_regex(r"[0-9hms Never.-]{1,20}", fullmatch=True))
def test_the_crds_take_what_the_code_takes_up_to_its_longest(text: str) -> None:
    refusal = _refusal(text)
    for pattern in PATTERNS:
        assert (re.fullmatch(pattern, text) is not None) == (not refusal or "ten years" in refusal)
