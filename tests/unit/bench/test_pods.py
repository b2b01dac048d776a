"""The benchmark beside a kubelet's Pods: who is measured when, and what counts for whom."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from rig import leaks
from rig.bench import pods
from rig.bench.pods import POD, Burst, Create, burst_rows, left_behind, one_at_a_time
from rig.bench.stage import SPEC
from rig.environment import Environment
from rig.leaks import Footprint


@dataclass(frozen=True)
class ScriptedLife:
    """Ready and gone after so many seconds, by the clock of the script alone."""

    began: float
    until_ready: float
    until_gone: float

    async def ready(self, since: float) -> float:
        return since + self.until_ready

    async def spoke(self) -> float:
        return self.began

    async def delete(self) -> float:
        return self.until_gone


def side(made: list[str], name: str, until_ready: float, until_gone: float) -> Create:
    times = itertools.count(100.0)

    async def create() -> ScriptedLife:
        made.append(name)
        return ScriptedLife(next(times), until_ready, until_gone)

    return create


def test_both_sides_take_turns_and_are_timed_from_their_own_post(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "PAUSE_SECONDS", (0.0, 0.0))
    made: list[str] = []
    sides = {"ours": side(made, "ours", 0.125, 0.25), "theirs": side(made, "theirs", 0.5, 0.75)}
    rows = {row.name: row for row in asyncio.run(one_at_a_time(sides, 3, "as it was"))}
    assert made == ["ours", "theirs"] * 3
    start = rows["apply → Ready with network, against a lean Pod, p50"]
    assert (start.ours, start.theirs, start.ratio, start.n) == (125, 500, 0.25, 3)
    end = rows["delete → gone with network, against a lean Pod, p95"]
    assert (end.ours, end.theirs) == (250, 750)
    assert all("as it was" in row.notes for row in rows.values())


def test_a_burst_is_a_rate_and_costs_what_its_own_parts_used() -> None:
    ours = Burst(wall=4.0, cpu={"engine": 2.0, "perdure": 1.0, "postgres": 1.0, "kubelet": 9.0, "kube-scheduler": 9.0})
    theirs = Burst(
        wall=8.0, cpu={"engine": 3.0, "perdure": 9.0, "postgres": 9.0, "kubelet": 2.0, "kube-scheduler": 1.0}
    )
    rate, cpu = burst_rows(ours, theirs, size=20, rounds=2, common="")
    assert (rate.ours, rate.theirs, rate.ratio) == (10.0, 5.0, 2.0)
    assert (cpu.ours, cpu.theirs) == (100.0, 150.0)
    assert "theirs: engine 75.0, kube-scheduler 25.0, kubelet 50.0, perdure 225.0" in cpu.notes


def test_a_lean_pod_is_given_the_image_and_the_limits_of_our_runtimes() -> None:
    (container,) = POD["containers"]
    assert (container["image"], container["resources"]) == (SPEC["image"], SPEC["resources"])
    assert (POD["automountServiceAccountToken"], POD["enableServiceLinks"]) == (False, False)


def test_what_an_environment_with_pods_leaves_on_the_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.0)
    before = Footprint.take()
    folder = tempfile.mkdtemp(prefix="perdure-left-", dir="/var/tmp")
    try:
        assert left_behind(before, Environment(Path(folder), pods=True)) == [f"files: {folder}"]
    finally:
        shutil.rmtree(folder)
    assert left_behind(before, Environment(Path(folder), pods=True)) == []
