"""`perdure cleanup KIND/NAME`: ask for the clean-up of a stopped runtime, and wait for the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from perdure.api.names import Kind
from perdure.api.request import Verb
from perdure.cli import options
from perdure.cli.asking import Target, asking
from perdure.cli.blocking import block_on
from perdure.cli.errors import CommandFailed
from perdure.cli.output import print_json
from perdure.cli.target import parse_namespace, parse_target

if TYPE_CHECKING:
    from perdure.api.request import RequestId
    from perdure.api.runtime import RequestStatus, Runtime


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
    kind, name = runtime
    target = _target(kind, namespace or _current_namespace(kubeconfig), name, timeout)
    id_, answer = block_on(_ask(kubeconfig, target, timeout if wait else None))
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


async def _ask(
    kubeconfig: Path | None, target: Target[Runtime], timeout: float | None
) -> tuple[RequestId, RequestStatus | None]:
    """The request, and its answer unless `timeout` is None: then it is not waited for. Raises `CommandFailed`."""
    async with asking(kubeconfig, Verb.CLEANUP, timeout or 0.0) as request:
        found = await request.read(target)
        if found.terminating:
            raise CommandFailed(f"{target.name} is being deleted, which cleans it up")
        await request.write(target, found.uid)
        return request.id, await request.answer(target) if timeout is not None else None


def _target(kind: Kind, namespace: str, name: str, waited: float) -> Target[Runtime]:
    from perdure.api.runtime import parse_runtime
    from perdure.kube import paths

    called = f"{kind.value} {namespace}/{name}"

    def unanswered(found: Runtime, _so_far: RequestStatus | None) -> str:
        wrong = [f"{c.reason}: {c.message}" for c in found.status.conditions if c.status != "True" and c.message]
        why = f" ({'; '.join(wrong)})" if wrong else ""
        return f"{called} is {found.status.phase or 'not bound'}{why}, and its clean-up is not over after {waited:g} s"

    return Target(called, paths.runtime(kind, namespace, name), parse_runtime, unanswered)
