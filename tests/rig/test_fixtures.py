"""The shared fixtures hand out places of a test's own in the services of the environment."""

import subprocess
from pathlib import Path

import psycopg
import pytest

from rig.clients import Ctr, Kubectl, Services

pytestmark = [pytest.mark.env, pytest.mark.root]


def test_containerd_namespace_knows_the_sample_images_and_runs_them(env: Services, ctr: Ctr) -> None:
    assert ctr("images", "ls", "-q").split() == ["perdure.dev/samples/busybox:1", "perdure.dev/samples/busybox:2"]
    # fmt: off
    ctr("run", "-d", "--null-io", "--runc-root", str(env.runc_root), "--cgroup", f"{env.cgroup_parent}/{ctr.namespace}",
        "perdure.dev/samples/busybox:1", "c")
    # fmt: on
    assert ctr("tasks", "exec", "--exec-id", "e", "c", "id", "-un") == "root\n"
    assert ctr("tasks", "exec", "--user", "1000", "--exec-id", "e", "c", "id", "-un") == "app\n"


def test_database_is_empty_and_of_ones_own(database_url: str, env: Services) -> None:
    assert database_url != env.database_url
    with psycopg.connect(database_url, connect_timeout=10) as connection:
        connection.execute("CREATE TABLE mine (n int)")
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)


def test_namespace_with_a_protected_object_is_released(kubectl: Kubectl, kube_namespace: str) -> None:
    kubectl.apply(
        {
            "apiVersion": "perdure.dev/v1alpha1",
            "kind": "BotRuntime",
            "metadata": {"name": "kept", "finalizers": ["perdure.dev/data-protection"]},
            "spec": {"image": "perdure.dev/samples/busybox:1"},
        }
    )
    assert kubectl.get("botruntime", "kept")["metadata"]["namespace"] == kube_namespace
    assert kubectl.attempt("get", "botruntime", "absent").returncode != 0


def test_state_folder_is_short_enough_for_sockets(state_dir: Path) -> None:
    assert state_dir.is_dir()
    assert len(str(state_dir / "agent.sock").encode()) < 108


def test_commands_of_the_environment_are_on_path(env: Services) -> None:
    for command in ("kubectl", "ctr", "perdure", "kubectl-perdure"):
        found = subprocess.run(["which", command], capture_output=True, text=True, check=True, timeout=10).stdout
        assert Path(found.strip()).parent == env.state_directory.parent / "bin"
