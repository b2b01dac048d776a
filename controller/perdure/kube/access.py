"""Where the API server is and how to prove who we are: from a kubeconfig or from the Pod that we run in.

Read by the `client` for its own requests and by the `intake` for kopf's, so that both always speak to the same server
as the same user. kubectl's rules hold: `KUBECONFIG`, then `~/.kube/config`, then the service account of the Pod.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration

SERVICE_HOST = "KUBERNETES_SERVICE_HOST"
"""Set in every container of a Pod by the kubelet."""
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a Pod finds the name of its namespace."""


_BROKEN = (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError)
"""What the client library lets through for a file that is not as it should be."""


class NoCluster(Exception):
    """It cannot be found out where the API server is, or as whom to speak to it; the message says what to set."""


@dataclass(frozen=True, slots=True)
class ClusterSource:
    """Which cluster to speak to. Both unset: as kubectl would choose."""

    kubeconfig: Path | None = None
    context: str | None = None


class Access:
    """An address and credentials. Tokens that are rotated on disk are read again when they are asked for."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.server: str = str(configuration.host).rstrip("/")
        self.proxy: str | None = configuration.proxy or None
        self.server_hostname: str | None = getattr(configuration, "tls_server_name", None) or None

    async def headers(self) -> dict[str, str]:
        """The Authorization header, if there is one (client certificates need none)."""
        token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": str(token)} if token else {}

    def tls(self) -> ssl.SSLContext | bool:
        """How the server is verified, with our client certificate; `True` is aiohttp's word for plain http."""
        configuration = self._configuration
        if not self.server.startswith("https:"):
            return True
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        # Kubernetes' own authorities often lack the key-usage extension that strict checking of Python 3.13 wants.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        return context


def current_namespace(source: ClusterSource) -> str:
    """The namespace that kubectl would take where none is given: that of the context, else of the Pod that we run in,
    else `default`. Raises `NoCluster`."""
    path, found = _kubeconfig(source)
    if not found:
        in_pod = not source.kubeconfig and not os.environ.get("KUBECONFIG") and OWN_NAMESPACE.exists()
        return OWN_NAMESPACE.read_text().strip() if in_pod else "default"
    try:
        contexts, active = kube_config.list_kube_config_contexts(config_file=path)
        chosen = next((it for it in contexts if it["name"] == source.context), None) if source.context else active
        return str((chosen or {}).get("context", {}).get("namespace") or "default")
    except (kube_config.ConfigException, *_BROKEN) as error:
        raise NoCluster(f"the kubeconfig {path} cannot be used: {type(error).__name__}: {error}") from error


def _kubeconfig(source: ClusterSource) -> tuple[str, bool]:
    """The path (or paths) of the kubeconfig, and whether there is one."""
    path = str(source.kubeconfig or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    return path, any(Path(part).exists() for part in path.split(os.pathsep))


async def load_access(source: ClusterSource) -> Access:
    """Read the configuration. Raises `NoCluster`."""
    configuration = Configuration()
    chosen = source.kubeconfig or os.environ.get("KUBECONFIG")
    path, found = _kubeconfig(source)
    try:
        if found:
            await kube_config.load_kube_config(
                config_file=path,
                context=source.context,
                client_configuration=configuration,
                persist_config=False,
            )
        elif not chosen and os.environ.get(SERVICE_HOST):
            kube_config.load_incluster_config(client_configuration=configuration)
        else:
            raise NoCluster(f"no kubeconfig at {path} and not in a Pod; set KUBECONFIG, or give --kubeconfig")
    except (kube_config.ConfigException, *_BROKEN) as error:
        raise NoCluster(f"the kubeconfig {path} cannot be used: {type(error).__name__}: {error}") from error
    return Access(configuration)
