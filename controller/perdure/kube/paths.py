"""Paths of the API server's resources that we read and write, and the few selectors. Nothing else builds a path."""

from __future__ import annotations

from urllib.parse import quote

from perdure.api.names import ARCHIVE_PLURAL, GROUP, LEASE_NAMESPACE, NODE_PLURAL, VERSION, Kind

_GROUP = f"/apis/{GROUP}/{VERSION}"
DISCOVERY = _GROUP


def runtimes(kind: Kind) -> str:
    """All runtimes of a kind, in all namespaces."""
    return f"{_GROUP}/{kind.plural}"


def runtime(kind: Kind, namespace: str, name: str) -> str:
    return f"{_GROUP}/namespaces/{quote(namespace)}/{kind.plural}/{quote(name)}"


def archives(namespace: str) -> str:
    return f"{_GROUP}/namespaces/{quote(namespace)}/{ARCHIVE_PLURAL}"


def archive(namespace: str, name: str) -> str:
    return f"{archives(namespace)}/{quote(name)}"


def nodes() -> str:
    return f"{_GROUP}/{NODE_PLURAL}"


def node(name: str) -> str:
    return f"{nodes()}/{quote(name)}"


def status(path: str) -> str:
    """The status subresource of an object's path."""
    return f"{path}/status"


def namespaces() -> str:
    return "/api/v1/namespaces"


def namespace(name: str) -> str:
    return f"{namespaces()}/{quote(name)}"


def secret(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"


def config_map(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/configmaps/{quote(name)}"


def events(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace)}/events"


def event(namespace: str, name: str) -> str:
    return f"{events(namespace)}/{quote(name)}"


def leases() -> str:
    """Our Leases; they are all in one namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases"


def lease(name: str) -> str:
    return f"{leases()}/{quote(name)}"
