"""What the rig derives from texts of others: versions of containerd and Go, the engine's configuration, ports."""

import socket
import tomllib
from pathlib import Path

import pytest

from rig import ports
from rig.binaries import PROGRAMS
from rig.containerd import config_version, render_config
from rig.cri import Cri
from rig.go import reported_version, required_version
from rig.paths import OWNER_FILE, system_path


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", 2),
        ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4", 2),
        ("containerd containerd.io v2.1.9 abcdef", 3),
        ("containerd github.com/containerd/containerd/v2 2.0.0 207ad711eabd375a01713109a8a197d197ff6542", 3),
    ],
)
def test_configuration_format_follows_the_engines_version(line: str, version: int) -> None:
    assert config_version(line) == version


def test_engine_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot read a containerd version"):
        config_version("containerd: unknown")


@pytest.mark.parametrize("version", [2, 3])
def test_engine_configuration_is_toml_with_everything_of_its_own(version: int) -> None:
    text = render_config(version=version, root=Path("/d/root"), state=Path("/r/state"), address=Path("/r/c.sock"))
    parsed = tomllib.loads(text)
    assert parsed["version"] == version
    assert (parsed["root"], parsed["state"]) == ("/d/root", "/r/state")
    assert parsed["grpc"]["address"] == "/r/c.sock"
    assert parsed["ttrpc"]["address"] == "/r/c.sock.ttrpc"
    assert {"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"} <= set(parsed["disabled_plugins"])


@pytest.mark.parametrize(
    ("version", "runtime"), [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")]
)
def test_an_engine_that_serves_a_kubelet_makes_pods_in_places_of_its_own(version: int, runtime: str) -> None:
    text = render_config(version=version, root=Path("/d"), state=Path("/r"), address=Path("/r/s"), serves_kubelet=True)
    parsed = tomllib.loads(text + Cri("pause:1", Path("/d/net.d"), Path("/plugins")).render(version, Path("/r/runc")))
    assert not {"io.containerd.grpc.v1.cri", runtime} & set(parsed["disabled_plugins"])
    tables = parsed["plugins"][runtime]
    assert tables["cni"] == {"bin_dir": "/plugins", "conf_dir": "/d/net.d"}
    assert tables["containerd"]["runtimes"]["runc"]["options"]["Root"] == "/r/runc"
    assert (tables["restrict_oom_score_adj"], tables["netns_mounts_under_state_dir"]) == (True, True)
    images = parsed["plugins"].get("io.containerd.cri.v1.images", {}).get("pinned_images", {})
    assert (images.get("sandbox") or tables["sandbox_image"]) == "pause:1"


def test_toolchain_is_new_enough_from_the_number_that_go_mod_names() -> None:
    wanted = required_version("module x\n\ngo 1.26.0\n")
    assert reported_version("go version go1.26.8 linux/amd64") >= wanted
    assert reported_version("go version go1.9 linux/amd64") < wanted
    assert reported_version("go version go1.27rc1 linux/amd64") >= wanted


def test_programs_are_cached_by_the_version_that_go_mod_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for program in PROGRAMS:
        assert program.cached == tmp_path / "perdure" / f"{program.cache_prefix}-{program.version}" / program.name
        assert program.version.startswith("v")


def test_ports_are_remembered_until_somebody_else_takes_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tmp_path / "run"
    first = ports.remembered(here, ["a", "b"], frozenset())
    assert len(set(first.values())) == 2
    assert ports.remembered(here, ["a", "b"], frozenset()) == first
    with socket.create_server(("127.0.0.1", first["a"])):
        assert ports.remembered(here, ["a", "b"], frozenset({"a"})) == first
        changed = ports.remembered(here, ["a", "b"], frozenset())
    assert changed["a"] != first["a"]
    assert changed["b"] == first["b"]


def test_an_environments_own_commands_are_never_taken_for_the_machines(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / OWNER_FILE).touch()
    assert system_path(f"{tmp_path / 'bin'}:/usr/bin:/sbin") == "/usr/bin:/sbin:/usr/sbin"
