"""Which namespace is meant where none is given: what kubectl would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.kube import access
from perdure.kube.access import ClusterSource, NoCluster, current_namespace


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(access, "OWN_NAMESPACE", tmp_path / "namespace")


def kubeconfig(path: Path, current: str = "a", **namespaces: str | None) -> Path:
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})}
        for name, namespace in namespaces.items()
    ]
    path.parent.mkdir(exist_ok=True)
    clusters, users = [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], [{"name": "u", "user": {}}]
    whole = {"clusters": clusters, "contexts": contexts, "users": users, "current-context": current}
    path.write_text(json.dumps(whole))
    return path


def test_the_current_context_says_it(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "b", a="of-a", b="of-b", c=None)
    assert current_namespace(ClusterSource(path)) == "of-b"
    assert current_namespace(ClusterSource(path, "a")) == "of-a"
    assert current_namespace(ClusterSource(path, "c")) == "default"


def test_kubeconfigs_are_found_as_kubectl_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(tmp_path / ".kube" / "config", a="at-home")
    assert current_namespace(ClusterSource()) == "at-home"
    absent, set_ = tmp_path / "absent", kubeconfig(tmp_path / "set", a="of-the-variable")
    monkeypatch.setenv("KUBECONFIG", f"{set_}:{absent}")
    assert current_namespace(ClusterSource()) == "of-the-variable"


def test_in_a_pod_it_is_the_pods_own(tmp_path: Path) -> None:
    assert current_namespace(ClusterSource()) == "default"
    (tmp_path / "namespace").write_text("agents\n")
    assert current_namespace(ClusterSource()) == "agents"


def test_a_kubeconfig_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("clusters: [")
    with pytest.raises(NoCluster, match="cannot be used"):
        current_namespace(ClusterSource(path))
