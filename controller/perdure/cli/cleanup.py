"""`perdure cleanup KIND/NAME`: ask for the clean-up of a stopped runtime, and wait for the answer.

The request is an annotation that is written with the rights of whoever calls: what is allowed, and who did it, is the API
server's to say. The agent of the node answers in `status.lastRequest`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perdure.api import names
from perdure.api.names import Kind
from perdure.cli import options
from perdure.cli.blocking import block_on
from perdure.cli.errors import CommandFailed
from perdure.cli.output import print_json
from perdure.cli.target import parse_namespace, parse_target

if TYPE_CHECKING:
    from perdure.api.request import RequestId
    from perdure.api.runtime import RequestStatus, Runtime
    from perdure.kube.client import ApiClient

LOOK_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Between looks at the answer; the last one repeats."""
_ID_BYTES = 8


@click.command(short_help="Clean a stopped runtime up now.")
@click.argument("runtime", metavar="KIND/NAME", callback=parse_target)
@options.option(
    "-n",
    "--namespace",
    callback=parse_namespace,
    help="Of the runtime. Default: that of the kubeconfig's current context.",
)
@options.option("--wait/--no-wait", default=True, help="Wait until it is done, or refused.")
@options.option("--timeout", type=click.FloatRange(1, 86_400), default=600.0, help="Seconds to wait.")
@options.cluster
@options.output
def cleanup(
    runtime: tuple[Kind, str], namespace: str | None, wait: bool, timeout: float, kubeconfig: Path | None, output: str
) -> None:
    """Clean a stopped runtime up now instead of when its stoppedTTL is over.

    Its data is archived, the archive is verified, then the container, its network and its layer are removed. The object
    stays; desiredState Running brings all of the data back. A runtime that runs is refused: stop it first.
    """
    from perdure.api.request import RequestId

    kind, name = runtime
    id_ = RequestId(secrets.token_hex(_ID_BYTES))
    within = namespace or _current_namespace(kubeconfig)
    asking = _Asking(kind, within, name, id_, timeout if wait else 0.0)
    answer = block_on(asking.ask(kubeconfig))
    shown = f"{kind.value.lower()}/{name}"
    if answer is None:
        if output == "json":
            print_json({"id": id_})
        else:
            click.echo(f"{shown}: clean-up requested ({id_})")
        return
    if output == "json":
        import msgspec

        print_json(msgspec.to_builtins(answer))
    elif answer.outcome == "success":
        click.echo(f"{shown}: {'nothing to do' if answer.code else 'cleaned up'}: {answer.message}")
    if answer.outcome != "success":
        raise CommandFailed(f"{shown} was not cleaned up ({answer.code or answer.outcome}): {answer.message}")


def _current_namespace(kubeconfig: Path | None) -> str:
    """As kubectl takes it. Raises `CommandFailed`."""
    from perdure.kube.access import ClusterSource, NoCluster, current_namespace

    try:
        return current_namespace(ClusterSource(kubeconfig))
    except NoCluster as error:
        raise CommandFailed(str(error)) from error


class _Asking:
    """One request, from writing it to its answer. `timeout` 0: the answer is not waited for."""

    def __init__(self, kind: Kind, namespace: str, name: str, id_: RequestId, timeout: float) -> None:
        self._name = f"{kind.value} {namespace}/{name}"
        self._place = (kind, namespace, name)
        self._id = id_
        self._timeout = timeout

    async def ask(self, kubeconfig: Path | None) -> RequestStatus | None:
        """Raises `CommandFailed`."""
        from perdure.kube.access import ClusterSource, NoCluster
        from perdure.kube.client import ApiClient, ApiRefused
        from perdure.reconcile.ports.errors import ApiUnavailable

        try:
            async with ApiClient(ClusterSource(kubeconfig)) as api:
                await self._write(api)
                return await self._answer(api) if self._timeout else None
        except NoCluster as error:
            raise CommandFailed(f"asking for the clean-up of {self._name}: {error}") from error
        except (ApiUnavailable, ApiRefused) as error:
            raise CommandFailed(str(error)) from error

    async def _write(self, api: ApiClient) -> None:
        from perdure.api.request import Verb, write_request

        found = await self._read(api)
        if found.terminating:
            raise CommandFailed(f"{self._name} is being deleted, which cleans it up")
        value = write_request(Verb.CLEANUP, self._id)
        metadata = {"uid": found.uid, "annotations": {names.ANNOTATION_REQUEST: value}}
        await api.merge_patch(self._path(), f"asking for the clean-up of {self._name}", {"metadata": metadata})

    async def _answer(self, api: ApiClient) -> RequestStatus:
        until, looks = time.monotonic() + self._timeout, 0
        while True:
            found = await self._read(api)
            last = found.status.last_request
            if last is not None and last.id == self._id:
                return last
            if time.monotonic() >= until:
                raise CommandFailed(_unanswered(self._name, found, self._id, self._timeout))
            await asyncio.sleep(LOOK_SECONDS[min(looks, len(LOOK_SECONDS) - 1)])
            looks += 1

    async def _read(self, api: ApiClient) -> Runtime:
        from perdure.api.runtime import parse_runtime

        raw: dict[str, Any] = await api.get(self._path(), f"reading {self._name}")
        return parse_runtime(raw)

    def _path(self) -> str:
        from perdure.kube import paths

        return paths.runtime(*self._place)


def _unanswered(name: str, found: Runtime, id_: RequestId, waited: float) -> str:
    """What is known about why nobody answered."""
    from perdure.api.request import parse_request

    asked = parse_request(found.annotations.get(names.ANNOTATION_REQUEST))
    if asked is None or asked.id != id_:
        return f"the request {id_} for {name} was overwritten by another one; ask again"
    wrong = [f"{c.reason}: {c.message}" for c in found.status.conditions if c.status != "True" and c.message]
    why = f" ({'; '.join(wrong)})" if wrong else ""
    return (
        f"{name} is {found.status.phase or 'not bound'}{why}, and its clean-up is not over after {waited:g} s. The request "
        f"stays; look at status.lastRequest for {id_}"
    )
