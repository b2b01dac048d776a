"""A control plane of the tests' own, with the CRDs in it: nobody else's operator sees their objects, and it may be killed.

Imported by the folders whose tests need it.
"""

from pathlib import Path

import pytest

from perdure.api.names import ARCHIVE_PLURAL, NODE_PLURAL, Kind
from perdure.kube import paths
from rig import binaries, ports
from rig.clients import Kubectl
from rig.controlplane import PORT_USERS, ControlPlane
from rig.paths import CHECKOUT

_PLANE = pytest.StashKey[ControlPlane]()


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """One per session, however many folders import this."""
    config = request.config
    if _PLANE not in config.stash:
        plane = make(tmp_path_factory.mktemp("control-plane"))
        config.add_cleanup(plane.stop)
        config.stash[_PLANE] = plane
        start(plane)
    return config.stash[_PLANE]


def make(directory: Path) -> ControlPlane:
    """A control plane whose files are in `directory`, not started."""
    run = directory / "run"
    return ControlPlane(directory / "data", run, ports.remembered(run, PORT_USERS, frozenset()), binaries.ensure())


def start(plane: ControlPlane) -> None:
    """Start it, install the CRDs, and wait until what they define can be listed.

    Established is not enough where a test deletes CRDs: one whose watch cache was not yet filled when it was deleted
    stays Terminating for ever in Kubernetes 1.36 ("could not list instances: storage is (re)initializing").
    """
    plane.start()
    kubectl = Kubectl(plane.admin_kubeconfig)
    kubectl("apply", "-f", str(CHECKOUT / "crds"))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    for plural in (*(kind.plural for kind in Kind), ARCHIVE_PLURAL, NODE_PLURAL):
        # Version 0 is what the cache alone answers; kubectl asks again while the server says that it is not ready.
        kubectl("get", "--raw", f"{paths.DISCOVERY}/{plural}?resourceVersion=0")
