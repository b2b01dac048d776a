"""A kubelet of the rig stays within its environment: its configuration, its covers, what is taken away after it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import binaries
from rig.containerd import Containerd
from rig.environment import Environment
from rig.kubelet import PORTS, PodNode, behind_covers, configuration_of, forget_results
from rig.leaks import Footprint


def texts(value: object) -> Iterator[str]:
    """All strings in a JSON document."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_every_path_of_a_kubelets_configuration_is_the_environments(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    document = configuration_of(PodNode(environment), dict.fromkeys(PORTS, 20000))
    paths = [text.removeprefix("unix://") for text in texts(document) if text.removeprefix("unix://").startswith("/")]
    own = (f"{tmp_path}/", f"{environment.run_directory}/", environment.cgroup_parent)
    assert [path for path in paths if not path.startswith(own)] == []
    assert {str(environment.engine.address), environment.cgroup_parent} <= set(paths)


def test_a_kubelet_may_change_neither_the_kernels_settings_nor_the_firewall(tmp_path: Path) -> None:
    document = configuration_of(PodNode(Environment(tmp_path)), dict.fromkeys(PORTS, 20000))
    assert (document["protectKernelDefaults"], document["makeIPTablesUtilChains"]) == (True, False)


def test_pods_have_a_network_that_is_not_the_runtimes(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    runtimes, pods = environment.network, environment.pod_network
    assert runtimes.name != pods.name
    assert runtimes.bridge != pods.bridge
    assert runtimes.configuration_directory != pods.configuration_directory


@pytest.mark.root
def test_a_cover_is_seen_by_the_covered_program_alone(tmp_path: Path) -> None:
    shown, folder, hidden = tmp_path / "panic", tmp_path / "shown", tmp_path / "hidden"
    shown.write_text("4711\n")
    for path in (folder, hidden):
        path.mkdir()
    setting = Path("/proc/sys/kernel/panic")
    before, mounts = setting.read_text(), Footprint.take().mounts
    covers = {setting: shown, hidden: folder}
    argv = behind_covers(["sh", "-c", f'cat {setting}; echo "$0" > {hidden}/it', "it's written"], covers)
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
    assert printed == "4711\n"
    assert setting.read_text() == before
    assert (folder / "it").read_text() == "it's written\n"
    assert list(hidden.iterdir()) == []
    assert not [mount for mount in Footprint.take().mounts - mounts if str(tmp_path) in mount]


@pytest.mark.root
def test_a_program_does_not_run_where_a_cover_cannot_be_laid(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    argv = behind_covers(["touch", str(tmp_path / "ran")], {tmp_path / "not-there": tmp_path / "shown"})
    assert subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode != 0
    assert not (tmp_path / "ran").exists()


def test_plugins_answers_of_one_network_are_forgotten_and_of_no_other(tmp_path: Path) -> None:
    ours = ["perdure-0a1b2c3d-f00-eth0", "cni-loopback-f00-lo", "perdure-0a1b2c3d-ba7-eth0"]
    others = ["perdure-99999999-ba2-eth0", "cni-loopback-ba2-lo", "cbr0-f00-eth0"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    forget_results(tmp_path, "perdure-0a1b2c3d")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    forget_results(tmp_path / "not-there", "perdure-0a1b2c3d")


def test_an_environment_builds_nothing_of_what_only_a_comparison_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "find", lambda program: Path("/usr/bin", program.name))
    assert set(binaries.ensure()) == {"etcd", "kube-apiserver", "kube-controller-manager"}
    assert set(binaries.ensure(binaries.POD_PROGRAMS)) == {"kubelet", "kube-scheduler"}


@pytest.mark.root
def test_an_engine_serves_a_kubelet_only_where_it_is_asked_to(tmp_path: Path) -> None:
    environment = Environment(tmp_path, pods=True)
    short = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    try:
        for cri, states in ((None, []), (environment.engine.cri, ["ok"])):
            engine = Containerd(tmp_path / "engine", short, f"/{short.name}", cri=cri)
            engine.start()
            try:
                plugins = [line.split() for line in engine.ctr("plugins", "ls").splitlines()]
            finally:
                engine.stop()
            assert [fields[-1] for fields in plugins if fields[1] == "cri" and fields[-1] != "skip"] == states
    finally:
        shutil.rmtree(short)
