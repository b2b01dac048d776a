"""The mark that tells which change of a spec makes another container."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.network import Dns, Network, NetworkMode, NetworkPeer, NetworkPolicy
from perdure.api.runtime import (
    DesiredState,
    EnvVar,
    HostAlias,
    ResourceLimits,
    Resources,
    RuntimeSpec,
)
from perdure.plan.spec_hash import same_process, spec_mark

SPEC = RuntimeSpec(image="example/image:1", command=("run",), env=(EnvVar(name="A", value="1"),))


def changed(**fields: Any) -> str:
    return spec_mark(msgspec.structs.replace(SPEC, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ("other",)},
        {"args": ("x",)},
        {"env": (EnvVar(name="A", value="2"),)},
        {"working_dir": "/tmp"},
        {"user": "app"},
        {"host_aliases": (HostAlias(ip="10.0.0.1", hostnames=("db",)),)},
        {"network": Network(dns=Dns(searches=("example.org",)))},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_change_of_what_is_run_is_another_process(fields: dict[str, Any]) -> None:
    assert not same_process(spec_mark(SPEC), changed(**fields))


def test_a_change_of_limits_is_the_same_process_under_another_mark() -> None:
    mark = changed(resources=Resources(limits=ResourceLimits(memory="1Gi")))
    assert mark != spec_mark(SPEC)
    assert same_process(mark, spec_mark(SPEC))


@pytest.mark.parametrize(
    "fields",
    [
        {"desired_state": DesiredState.STOPPED},
        {"image": "example/image:2"},
        {"min_ready_seconds": 5},
        {"network": Network(mode=NetworkMode.NONE)},
        {"network": Network(mode=NetworkMode.CNI)},
        {"network": Network(policy=NetworkPolicy(allow_from=(NetworkPeer(namespace="other"),)))},
    ],
)
def test_other_changes_leave_the_mark_as_it_is(fields: dict[str, Any]) -> None:
    assert changed(**fields) == spec_mark(SPEC)


def test_a_mark_fits_into_a_label() -> None:
    assert len(spec_mark(SPEC)) <= 63
