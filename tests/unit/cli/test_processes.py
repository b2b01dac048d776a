"""From a command line and an environment to the settings that a process is made from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import perdure.cli
from perdure.cli.main import main
from perdure.cli.settings import AgentSettings, ControllerSettings, DatabaseUrl, StandaloneSettings
from perdure.plan.allotment import PortRange
from perdure.reconcile.ports.errors import EngineUnavailable
from perdure.telemetry.health import Address
from perdure.telemetry.logs import LogFormat, LogLevel

URL = "postgresql://perdure:hunter2@db/perdure"


class Composition(ModuleType):
    """Stands where a composition root is: keeps what it was run with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.settings: Any = None
        self.fails: Exception | None = None

    def run(self, settings: Any) -> None:
        self.settings = settings
        if self.fails:
            raise self.fails


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Composition]:
    compositions = {}
    for process in ("controller", "agent", "standalone"):
        module = compositions[process] = Composition(f"perdure.cli.{process}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(perdure.cli, process, module, raising=False)
    return compositions


def test_defaults_of_an_agent(
    started: dict[str, Composition], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDURE_DATABASE_URL", URL)
    monkeypatch.setattr("socket.gethostname", lambda: "Ada.Example")
    assert main(["agent"]) == 0, capsys.readouterr().err
    settings = started["agent"].settings
    assert isinstance(settings, AgentSettings)
    assert settings.database_url == DatabaseUrl(URL)
    assert settings.common.kubeconfig is None
    assert settings.common.http_address == Address("127.0.0.1", 9464)
    assert settings.common.resync_seconds == 300.0
    assert (settings.common.log_level, settings.common.log_format) == (LogLevel.INFO, LogFormat.AUTO)
    node = settings.node
    assert node.name == "ada.example"
    assert node.containerd_address == Path("/run/containerd/containerd.sock").resolve()
    assert (node.engine_namespace, node.cgroup_parent, node.runc_root) == ("perdure", "/perdure", None)
    assert node.archive_dir == node.state_dir / "archives"
    assert node.allocatable_millicores == (os.cpu_count() or 1) * 1000
    assert node.allocatable_bytes > 2**26
    assert node.max_concurrent_starts == 2 * len(os.sched_getaffinity(0))


def test_every_option_is_a_variable_and_the_command_line_wins(
    started: dict[str, Composition],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables = {
        "KUBECONFIG": "/k/one:/k/two",
        "PERDURE_DATABASE_URL": URL,
        "PERDURE_HTTP_ADDRESS": "[::1]:0",
        "PERDURE_RESYNC_SECONDS": "5",
        "PERDURE_LOG_LEVEL": "DEBUG",
        "PERDURE_LOG_FORMAT": "json",
        "PERDURE_NODE_NAME": "n1",
        "PERDURE_CONTAINERD_ADDRESS": str(tmp_path / "c.sock"),
        "PERDURE_ENGINE_NAMESPACE": "other",
        "PERDURE_RUNC_ROOT": str(tmp_path / "runc"),
        "PERDURE_CGROUP_PARENT": "/a/b/",
        "PERDURE_STATE_DIR": str(tmp_path / "state"),
        "PERDURE_RUN_DIR": str(tmp_path / "run"),
        "PERDURE_ARCHIVE_DIR": str(tmp_path / "archives"),
        "PERDURE_ALLOCATABLE_CPU": "1500m",
        "PERDURE_ALLOCATABLE_MEMORY": "1Gi",
        "PERDURE_MAX_CONCURRENT_STARTS": "3",
        "PERDURE_PORT_RANGE": "9000-9100",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["standalone", "--node-name", "n2"]) == 0, capsys.readouterr().err
    settings = started["standalone"].settings
    assert isinstance(settings, StandaloneSettings)
    assert settings.common.kubeconfig == Path("/k/one:/k/two")
    assert settings.common.http_address == Address("::1", 0)
    assert settings.common.resync_seconds == 5.0
    assert (settings.common.log_level, settings.common.log_format) == (LogLevel.DEBUG, LogFormat.JSON)
    assert settings.port_range == PortRange(9000, 9100)
    node = settings.node
    assert (node.name, node.engine_namespace, node.cgroup_parent) == ("n2", "other", "/a/b")
    assert (node.containerd_address, node.runc_root) == (tmp_path / "c.sock", tmp_path / "runc")
    assert (node.state_dir, node.run_dir) == (tmp_path / "state", tmp_path / "run")
    assert node.archive_dir == tmp_path / "archives"
    assert (node.allocatable_millicores, node.allocatable_bytes) == (1500, 2**30)
    assert node.max_concurrent_starts == 3


def test_a_node_may_offer_nothing(started: dict[str, Composition]) -> None:
    assert main(["standalone", "--allocatable-cpu", "0", "--allocatable-memory", "0"]) == 0
    node = started["standalone"].settings.node
    assert (node.allocatable_millicores, node.allocatable_bytes) == (0, 0)


def test_standalone_alone_does_without_a_database_url(
    started: dict[str, Composition], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["standalone"]) == 0
    assert started["standalone"].settings.database_url is None
    for process in ("agent", "controller"):
        assert main([process]) == 2
        assert "PERDURE_DATABASE_URL" in capsys.readouterr().err
        assert started[process].settings is None


def test_the_database_url_may_be_in_a_file(started: dict[str, Composition], tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    assert main(["controller", "--database-url-file", str(file)]) == 0
    settings = started["controller"].settings
    assert isinstance(settings, ControllerSettings)
    assert settings.database_url.reveal() == URL
    assert settings.port_range == PortRange(7000, 8000)
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--database-url-file", "/nonexistent/url"], 1, "/nonexistent/url: No such file"),
        (["--database-url-file", "/dev/null"], 1, "it is empty"),
        (["--database-url-file", "/dev/null", "--database-url", URL], 2, "choose one"),
        (["--database-url", URL, "--http-address", "9464"], 2, "127.0.0.1:9464"),
        (["--database-url", URL, "--node-name", "Ada"], 2, "--node-name"),
        (["--database-url", URL, "--node-name", "a" * 64], 2, "at most 63"),
        (["--database-url", URL, "--engine-namespace", "a b"], 2, "namespace of containerd"),
        (["--database-url", URL, "--cgroup-parent", "perdure"], 2, "/perdure"),
        (["--database-url", URL, "--cgroup-parent", "/a/../.."], 2, "/perdure"),
        (["--database-url", URL, "--cgroup-parent", "/"], 2, "/perdure"),
        (["--database-url", URL, "--allocatable-memory", "lots"], 2, "is not a quantity"),
        (["--database-url", URL, "--resync-seconds", "0"], 2, "resync-seconds"),
        (["--database-url", URL, "--log-level", "loud"], 2, "log-level"),
    ],
)
def test_a_bad_value_is_said_before_anything_starts(
    arguments: list[str],
    code: int,
    message: str,
    started: dict[str, Composition],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["agent", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "hunter2" not in line
    assert started["agent"].settings is None


@pytest.mark.parametrize("value", ["7000", "8000-7000", "0-10", "7000-65536", "-7000", "a-b", "7000-8000-9000", ""])
@pytest.mark.parametrize("process", ["controller", "standalone"])
def test_what_is_no_range_of_ports_is_said(
    value: str, process: str, started: dict[str, Composition], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([process, "--database-url", URL, f"--port-range={value}"]) == 2
    assert "is no range of ports such as 7000-8000" in capsys.readouterr().err
    assert started[process].settings is None


def test_a_part_that_is_missing_ends_the_process_with_one_line_without_the_password(
    started: dict[str, Composition], capsys: pytest.CaptureFixture[str]
) -> None:
    started["standalone"].fails = EngineUnavailable(f"connecting to {URL}: refused; start it")
    assert main(["standalone"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "postgresql://perdure:***@db/perdure: refused; start it" in line


def test_a_defect_in_a_process_is_not_reduced_to_one_line(started: dict[str, Composition]) -> None:
    started["standalone"].fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["standalone"])
    assert sys.excepthook is sys.__excepthook__


@pytest.mark.parametrize("process", ["controller", "standalone"])
def test_history_is_kept_for_a_quarter_or_longer(
    process: str, started: dict[str, Composition], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDURE_DATABASE_URL", URL)
    assert main([process]) == 0, capsys.readouterr().err
    assert started[process].settings.history_days == 90
    monkeypatch.setenv("PERDURE_HISTORY_DAYS", "400")
    assert main([process]) == 0
    assert started[process].settings.history_days == 400
    for wrong in ("89", "-1", "1e9", "a year"):
        assert main([process, "--history-days", wrong]) == 2
        assert "--history-days" in capsys.readouterr().err
