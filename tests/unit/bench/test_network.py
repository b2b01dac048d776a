"""The benchmark of the network: its configurations, its counter of plugins, and what its rows are held against."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from rig.bench.attaching import attachment_at, bridge_alone
from rig.bench.attachment_costs import Meter, counted_plugins
from rig.bench.networked import engine_rows
from rig.bench.stage import free_ports
from rig.environment import Environment


def test_the_bridge_alone_is_the_environments_network_without_its_other_plugins(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    folder = environment.network.configuration_directory
    folder.mkdir()
    plugins = [{"type": "bridge", "bridge": "br0"}, {"type": "portmap"}]
    (folder / "10-perdure.conflist").write_text(json.dumps({"name": "lab", "plugins": plugins}))
    found = json.loads((bridge_alone(environment) / "10-perdure.conflist").read_text())
    assert found == {"name": "lab", "plugins": plugins[:1]}
    assert json.loads((folder / "10-perdure.conflist").read_text())["plugins"] == plugins


def test_a_counted_plugin_leaves_a_line_and_does_the_plugins_work(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "echo").write_text('#!/bin/sh\necho "$1 $CNI_COMMAND"\nexit 3\n')
    (real / "echo").chmod(0o755)
    executions = tmp_path / "executions"
    folder = counted_plugins((tmp_path / "nothing", real), tmp_path / "counted", executions)
    assert executions.read_text() == ""
    for command in ("ADD", "DEL"):
        ended = subprocess.run(
            [folder / "echo", "said"], env={"CNI_COMMAND": command}, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (3, f"said {command}\n")
    assert executions.read_text().split() == ["ADD", "DEL"]


def test_the_first_folder_that_has_a_plugin_is_the_one_that_is_counted(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bridge").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "bridge").chmod(0o755)
    folder = counted_plugins((tmp_path / "first", tmp_path / "second"), tmp_path / "counted", tmp_path / "executions")
    assert subprocess.run([folder / "bridge"], capture_output=True, text=True, check=True).stdout == "first\n"


def test_a_meter_tells_wall_and_cpu_time_apart() -> None:
    meter = Meter()
    with meter.measuring("spinning"):
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    rows = {row.name: row for row in meter.rows("here", "idle")}
    assert set(rows) == {f"spinning, here{end}" for end in (", p50", ", p95", ", p99", ": CPU")}
    assert rows["spinning, here, p50"].ours >= 49
    assert 49 <= rows["spinning, here: CPU"].ours <= rows["spinning, here, p50"].ours + 5


def test_a_start_with_a_network_is_held_against_the_serial_order_and_against_none() -> None:
    seconds = {"parallel": [0.080], "serial": [0.095], "ctr": [0.120], "none": [0.065]}
    found = {row.name: row.holds for row in engine_rows("bridge alone", seconds, "") if row.name.endswith("p50")}
    assert found == {
        "request → task running, bridge alone: against our serial order, p50": False,
        "request → task running, bridge alone: against ctr, p50": None,
        "request → task running, bridge alone: against no network, p50": True,
    }


def test_a_port_leads_into_what_is_attached_only_where_one_is_asked_for() -> None:
    there = Path("/run/somewhere/1234")
    assert attachment_at(there).capabilities.document() == {}
    assert "portMappings" in attachment_at(there, 7001).capabilities.document()
    assert (attachment_at(there).container_id, attachment_at(there).netns) == ("1234", str(there))


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(50))) == 50
