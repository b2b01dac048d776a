"""A Kubernetes control plane without a cluster: etcd, kube-apiserver and kube-controller-manager on loopback.

Called by ``rig.environment``, and by tests that need an API server of their own to kill, restart or restore.
RBAC is on. ``kubeconfig(user, groups)`` makes any user; binding rights to it is the caller's work.
"""

import base64
import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rig.certificates import CertificateAuthority
from rig.probes import answers, self_signed
from rig.processes import Daemon

ADMIN_TOKEN_FILE = "tokens.csv"
CONTROLLERS = (
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
)
"""What a cluster does for custom resources, namespaces and accounts; nothing here schedules Pods."""

PORT_USERS = {
    "etcd": "etcd",
    "etcd-peer": "etcd",
    "apiserver": "kube-apiserver",
    "controller-manager": "kube-controller-manager",
}
"""Names of the ports that a control plane needs, and which daemon listens on each."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """One control plane.

    ``binaries`` maps ``etcd``, ``kube-apiserver`` and ``kube-controller-manager`` to executables, ``ports`` maps
    the names of PORT_USERS to free loopback ports. ``data_directory`` keeps keys and etcd's data,
    ``run_directory`` logs and pid files.
    ``durable`` makes etcd fsync: slower, and needed only where latency is measured.
    """

    data_directory: Path
    run_directory: Path
    ports: Mapping[str, int]
    binaries: Mapping[str, Path]
    durable: bool = False

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://127.0.0.1:{self.ports['apiserver']}"

    @property
    def authority(self) -> CertificateAuthority:
        """Issuer of all certificates of this control plane."""
        return CertificateAuthority(self.data_directory / "pki")

    @property
    def etcd(self) -> Daemon:
        """The store of the API server."""
        client = f"http://127.0.0.1:{self.ports['etcd']}"
        peer = f"http://127.0.0.1:{self.ports['etcd-peer']}"
        # fmt: off
        argv = [
            str(self.binaries["etcd"]), "--name", "perdure-env", "--data-dir", str(self.data_directory / "etcd"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"perdure-env={peer}", "--log-level", "warn",
        ]
        # fmt: on
        if not self.durable:
            argv.append("--unsafe-no-fsync")
        return Daemon("etcd", argv, self.run_directory, lambda: answers(f"{client}/readyz"))

    @property
    def apiserver(self) -> Daemon:
        """The API server itself."""
        server = self.authority.server()
        # fmt: off
        argv = [
            str(self.binaries["kube-apiserver"]),
            "--etcd-servers", f"http://127.0.0.1:{self.ports['etcd']}",
            "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
            "--secure-port", str(self.ports["apiserver"]), "--endpoint-reconciler-type", "none",
            "--cert-dir", str(self.run_directory / "apiserver"),
            "--tls-cert-file", str(server.certificate), "--tls-private-key-file", str(server.key),
            "--client-ca-file", str(self.authority.certificate),
            "--token-auth-file", str(self.data_directory / ADMIN_TOKEN_FILE),
            "--service-account-key-file", str(self.authority.service_account_public_key),
            "--service-account-signing-key-file", str(self.authority.service_account_key),
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-cluster-ip-range", "10.0.0.0/24",
            "--authorization-mode", "RBAC", "--allow-privileged=true",
            "--disable-admission-plugins", "ServiceAccount",
        ]
        # fmt: on
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        return Daemon("kube-apiserver", argv, self.run_directory, lambda: answers(f"{self.url}/readyz", context))

    @property
    def controller_manager(self) -> Daemon:
        """What empties deleted namespaces and collects owned objects."""
        port = self.ports["controller-manager"]
        kubeconfig = str(self.kubeconfig("system:kube-controller-manager", ("system:masters",)))
        # fmt: off
        argv = [
            str(self.binaries["kube-controller-manager"]), "--kubeconfig", kubeconfig,
            "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
            "--bind-address", "127.0.0.1", "--secure-port", str(port),
            "--cert-dir", str(self.run_directory / "controller-manager"),
            "--root-ca-file", str(self.authority.certificate),
            "--controllers", ",".join(CONTROLLERS), "--leader-elect=false",
        ]
        # fmt: on
        return Daemon(
            "kube-controller-manager",
            argv,
            self.run_directory,
            lambda: answers(f"https://127.0.0.1:{port}/healthz", self_signed()),
        )

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """In the order in which they start; they stop in the opposite order."""
        return (self.etcd, self.apiserver, self.controller_manager)

    def start(self) -> None:
        """Start what does not run and wait until all of it serves. Raises DaemonError or CommandError."""
        self.data_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.authority.create()
        tokens = self.data_directory / ADMIN_TOKEN_FILE
        if not tokens.exists():
            tokens.write_text(f'{secrets.token_urlsafe(32)},perdure-admin,perdure-admin,"system:masters"\n')
            tokens.chmod(0o600)
        self.etcd.start()
        self.etcd.wait_ready()
        self.apiserver.start()
        self.apiserver.wait_ready()
        self.controller_manager.start()
        self.controller_manager.wait_ready()

    def stop(self) -> None:
        """Stop all of it; data stay."""
        if not self.authority.certificate.exists():
            return
        for daemon in reversed(self.daemons):
            daemon.stop()

    @property
    def admin_token(self) -> str:
        """Bearer token of a cluster administrator."""
        return (self.data_directory / ADMIN_TOKEN_FILE).read_text().split(",")[0]

    @property
    def admin_kubeconfig(self) -> Path:
        """kubeconfig of a cluster administrator."""
        return self.kubeconfig("perdure-admin", ("system:masters",))

    def kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A self-contained kubeconfig (mode 0600) that makes its holder ``user`` in ``groups``.

        Without groups and role bindings that user may do nothing but what RBAC gives to everyone who is authenticated.
        """
        pair = self.authority.client(user, groups)
        directory = self.data_directory / "kubeconfig"
        directory.mkdir(exist_ok=True, mode=0o700)
        target = directory / pair.certificate.stem.removeprefix("client-")
        content = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "perdure-env",
                "contexts": [{"name": "perdure-env", "context": {"cluster": "perdure-env", "user": user}}],
                "clusters": [
                    {
                        "name": "perdure-env",
                        "cluster": {
                            "server": self.url,
                            "certificate-authority-data": _base64_of(self.authority.certificate),
                        },
                    }
                ],
                "users": [
                    {
                        "name": user,
                        "user": {
                            "client-certificate-data": _base64_of(pair.certificate),
                            "client-key-data": _base64_of(pair.key),
                        },
                    }
                ],
            },
            indent=2,
        )
        if not target.exists() or target.read_text() != content:
            target.touch(mode=0o600)
            target.write_text(content)
        return target


def _base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
