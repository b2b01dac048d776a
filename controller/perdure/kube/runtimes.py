"""Reads and writes of BotRuntime and GameRuntime objects that agent and controller share.

Every write carries the resourceVersion that it was decided on. That is also the only way to say *which* object is
meant: a patch of the status subresource ignores `metadata.uid`, so without it the status of one life could be written
to the next one of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.api.names import Kind, RuntimeRef, Uid
from perdure.api.runtime import Runtime, RuntimeStatus, parse_runtime
from perdure.kube import clock, paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.kube.status import status_patch
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.reconcile.ports.errors import ApiUnavailable, StatusConflict

_ATTEMPTS = 4
"""Of a write that meets a newer version each time: after that the next reconcile tries."""


class RuntimeObjects:
    """`selector` limits what `list_uids` sees (an agent's own node); `count_patch` is told the HTTP code of each."""

    def __init__(
        self, client: ApiClient, selector: str = "", count_patch: Callable[[int], None] = lambda code: None
    ) -> None:
        self._client = client
        self._selector = selector
        self._count_patch = count_patch

    async def look_up(self, ref: RuntimeRef) -> Certain[Runtime]:
        """Exactly this life. `Absent` only if the server said so about this name, or shows another uid under it."""
        try:
            runtime = await self.read(ref.kind, ref.namespace, ref.name)
        except (ApiUnavailable, ApiRefused) as error:
            return Unknown(str(error))
        return Present(runtime) if runtime is not None and runtime.uid == ref.uid else Absent()

    async def read(self, kind: Kind, namespace: str, name: str) -> Runtime | None:
        """Whatever has this name now; None if the server says that nothing has. Raises on everything else."""
        what = f"reading {kind} {namespace}/{name}"
        try:
            return _parse(what, await self._client.get(paths.runtime(kind, namespace, name), what))
        except ApiRefused as refused:
            if refused.code == 404 and refused.about == name and refused.kind == kind.plural:
                return None
            raise

    async def list_uids(self, kind: Kind) -> dict[Uid, Runtime]:
        """All of a kind that the selector admits. Raises `ApiUnavailable` rather than return a part."""
        what = f"listing {kind.plural}"
        found: dict[Uid, Runtime] = {}
        async for page in self._client.pages(paths.runtimes(kind), what, self._selector):
            for raw in page:
                runtime = _parse(what, raw)
                found[runtime.uid] = runtime
        return found

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime:
        """Make the status what it should be, with one patch, or with none if it is so already.

        With a newer version in between, the same life is read again and patched again: nobody else writes its status.
        Raises `StatusConflict` if that life is over, `ApiUnavailable`.
        """
        what = f"writing the status of {runtime.key}"
        path = paths.status(paths.runtime(runtime.kind, runtime.namespace, runtime.name))
        for _ in range(_ATTEMPTS):
            changes = status_patch(runtime.status, status, clock.now())
            if not changes:
                return runtime
            body: Json = {"metadata": {"resourceVersion": runtime.resource_version}, "status": changes}
            try:
                answer = await self._client.merge_patch(path, what, body)
            except ApiRefused as refused:
                self._count_patch(refused.code)
                if refused.code == 404:
                    raise StatusConflict(f"{what}: it is gone") from refused
                if refused.code != 409:
                    raise ApiUnavailable(str(refused)) from refused
                runtime = await self.read_same(runtime, what)
            else:
                self._count_patch(200)
                return _parse(what, answer)
        raise StatusConflict(f"{what}: it keeps changing; it is tried again with the next version that is seen")

    async def patch_metadata(self, runtime: Runtime, metadata: dict[str, Any], what: str) -> Runtime:
        """One merge patch of metadata at exactly the version that was seen. Raises `ApiRefused`, `ApiUnavailable`."""
        body: Json = {"metadata": {"resourceVersion": runtime.resource_version, **metadata}}
        path = paths.runtime(runtime.kind, runtime.namespace, runtime.name)
        return _parse(what, await self._client.merge_patch(path, what, body))

    async def read_same(self, runtime: Runtime, what: str) -> Runtime:
        """The newest version of this life. Raises `StatusConflict` if it is over, `ApiUnavailable`."""
        try:
            newest = await self.read(runtime.kind, runtime.namespace, runtime.name)
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused
        if newest is None or newest.uid != runtime.uid:
            raise StatusConflict(f"{what}: it is gone")
        return newest


def _parse(what: str, raw: Json) -> Runtime:
    try:
        return parse_runtime(raw)
    except (KeyError, ValueError) as error:
        raise ApiUnavailable(f"{what}: the answer is no runtime ({type(error).__name__}: {error})") from error
