"""Whether the cluster has what a process needs before it starts: our CRDs and our namespace.

Called by the composition roots once, and by the intake before each start of kopf, which would wait for ever in silence
for a CRD that is not there.
"""

from __future__ import annotations

from perdure.api.names import ARCHIVE_PLURAL, GROUP, LEASE_NAMESPACE, NODE_PLURAL, VERSION, Kind
from perdure.kube import paths
from perdure.kube.client import ApiClient, ApiRefused
from perdure.reconcile.ports.errors import ApiUnavailable

PLURALS = (*(kind.plural for kind in Kind), ARCHIVE_PLURAL, NODE_PLURAL)


class NotInstalled(Exception):
    """Something of Perdure is not in the cluster; the message says what to apply."""


async def require_crds(client: ApiClient) -> None:
    """Raises `NotInstalled` if a CRD is missing, `ApiUnavailable` if that cannot be found out."""
    what = "looking for the CRDs"
    try:
        groups = (await client.get("/apis", what)).get("groups") or []
        versions = {
            version["version"]
            for group in groups
            if group.get("name") == GROUP
            for version in group.get("versions") or []
        }
        found: set[str] = set()
        if VERSION in versions:
            found = {resource["name"] for resource in (await client.get(paths.DISCOVERY, what)).get("resources") or []}
    except ApiRefused as refused:
        raise ApiUnavailable(str(refused)) from refused
    missing = [f"{plural}.{GROUP}" for plural in PLURALS if plural not in found]
    if missing:
        raise NotInstalled(
            f"the API server at {client.server} does not serve {', '.join(missing)} ({VERSION}); "
            "run: kubectl apply -f crds/"
        )


async def ensure_namespace(client: ApiClient) -> None:
    """Our namespace, made if it is missing and we may. Raises `NotInstalled`, `ApiUnavailable`."""
    what = f"looking for the namespace {LEASE_NAMESPACE}"
    try:
        await client.get(paths.namespace(LEASE_NAMESPACE), what)
    except ApiRefused as refused:
        if refused.code != 404:
            raise ApiUnavailable(str(refused)) from refused
    else:
        return
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE_NAMESPACE}}
    try:
        await client.post(paths.namespaces(), f"creating the namespace {LEASE_NAMESPACE}", body)
    except ApiRefused as refused:
        if refused.code == 409:
            return  # another process was faster
        raise NotInstalled(
            f"the namespace {LEASE_NAMESPACE} is missing and could not be created; run: kubectl apply -f deploy/rbac/"
        ) from refused
