"""The mark by which a changed spec is told from one that only came another way."""

from __future__ import annotations

import json

import msgspec
import pytest

from perdure.api.runtime import EnvVar, ResourceLimits, Resources, RuntimeSpec
from perdure.plan.spec_hash import same_process, spec_mark

STORED = """{"image": "x", "command": ["a"], "env": [{"name": "A", "value": "1"}], "resources":
{"limits": {"cpu": "1", "memory": "64Mi", "pids": 512}, "requests": {"cpu": "100m", "memory": "32Mi"}}}"""


def test_the_mark_does_not_depend_on_who_decoded_the_spec() -> None:
    """Watches and answers are decoded by different libraries, which share different strings with the defaults."""
    watched = msgspec.convert(json.loads(STORED), RuntimeSpec, strict=False)
    answered = msgspec.convert(msgspec.json.decode(STORED), RuntimeSpec, strict=False)
    assert watched == answered
    assert spec_mark(watched) == spec_mark(answered)


def test_a_field_at_its_default_leaves_the_mark_as_it_is() -> None:
    limits = ResourceLimits(cpu="".join(["", "1"]), memory="".join(["512", "Mi"]), pids=int("512"))
    assert spec_mark(RuntimeSpec(image="x", resources=Resources(limits=limits))) == spec_mark(RuntimeSpec(image="x"))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (RuntimeSpec(image="x", resources=Resources(limits=ResourceLimits(pids=100))), True),
        (RuntimeSpec(image="x", command=("a",)), False),
        (RuntimeSpec(image="x", args=("a",)), False),
        (RuntimeSpec(image="x", env=(EnvVar(name="A", value="1"),)), False),
    ],
)
def test_limits_are_told_from_what_is_run(changed: RuntimeSpec, same: bool) -> None:
    plain = spec_mark(RuntimeSpec(image="x"))
    assert spec_mark(changed) != plain
    assert same_process(spec_mark(changed), plain) is same
