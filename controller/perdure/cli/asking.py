"""Asks an object's agent for something by the annotation `perdure.dev/request`, and waits for its answer.

The request is written with the rights of whoever calls: what is allowed, and who did it, is the API server's to say. The
agent answers in `status.lastRequest`. Called by the commands that ask: `cleanup`, `archive reindex`, `nodes accept-absence`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from perdure.api import names
from perdure.api.request import OF_NODES, OF_RUNTIMES, UNDER_WAY, RequestId, Verb, parse_request, write_request
from perdure.cli.errors import CommandFailed
from perdure.cli.output import Cell, print_json, print_table

if TYPE_CHECKING:
    from perdure.api.node import RuntimeNode
    from perdure.api.runtime import RequestStatus, Runtime
    from perdure.kube.client import ApiClient

LOOK_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Between looks at the answer; the last one repeats."""
_ID_BYTES = 8

Seen = TypeVar("Seen", "Runtime", "RuntimeNode")


@dataclass(frozen=True, slots=True)
class Target(Generic[Seen]):
    """What is asked. `name`: for people, as in "BotRuntime agents/ada"."""

    name: str
    path: str
    parse: Callable[[Mapping[str, Any]], Seen]
    unanswered: Callable[[Seen, RequestStatus | None], str]
    """What is known, at the end of the time, about why there is no answer, or only how far it came."""


class Asking:
    """One request, which several objects may get. `timeout` seconds is how long the answers are waited for."""

    def __init__(self, api: ApiClient, verb: Verb, timeout: float) -> None:
        self.id = RequestId(secrets.token_hex(_ID_BYTES))
        self._api = api
        self._verb = verb
        self._until = time.monotonic() + timeout

    async def read(self, target: Target[Seen]) -> Seen:
        return target.parse(await self._api.get(target.path, f"reading {target.name}"))

    async def nodes(self) -> list[RuntimeNode]:
        """All of the cluster."""
        from perdure.api.node import parse_node
        from perdure.kube import paths

        pages = self._api.pages(paths.nodes(), "listing RuntimeNodes")
        return [parse_node(raw) async for page in pages for raw in page]

    async def write(self, target: Target[Seen], uid: str) -> None:
        """Ask exactly the object with this uid."""
        value = write_request(self._verb, self.id)
        metadata = {"uid": uid, "annotations": {names.ANNOTATION_REQUEST: value}}
        await self._api.merge_patch(target.path, f"asking {target.name} for {self._verb}", {"metadata": metadata})

    async def answer(self, target: Target[Seen]) -> RequestStatus:
        """Raises `CommandFailed` where none comes in time, or none will come."""
        looks = 0
        while True:
            found = await self.read(target)
            last = found.status.last_request
            mine = last if last is not None and last.id == self.id else None
            if mine is not None and mine.outcome != UNDER_WAY:
                return mine
            asked = parse_request(found.annotations.get(names.ANNOTATION_REQUEST), OF_RUNTIMES + OF_NODES)
            if asked is None or asked.id != self.id:
                raise CommandFailed(
                    f"the request {self.id} for {target.name} was overwritten by another one; ask again"
                )
            if time.monotonic() >= self._until:
                why = target.unanswered(found, mine)
                raise CommandFailed(f"{why}. The request stays; look at status.lastRequest for {self.id}")
            await asyncio.sleep(LOOK_SECONDS[min(looks, len(LOOK_SECONDS) - 1)])
            looks += 1


@asynccontextmanager
async def asking(kubeconfig: Path | None, verb: Verb, timeout: float) -> AsyncIterator[Asking]:
    """A request to be made; whatever the API server has against it becomes a `CommandFailed`."""
    from perdure.kube.access import ClusterSource, NoCluster
    from perdure.kube.client import ApiClient, ApiRefused
    from perdure.reconcile.ports.errors import ApiUnavailable

    try:
        async with ApiClient(ClusterSource(kubeconfig)) as api:
            yield Asking(api, verb, timeout)
    except NoCluster as error:
        raise CommandFailed(f"asking for {verb}: {error}") from error
    except (ApiUnavailable, ApiRefused) as error:
        raise CommandFailed(str(error)) from error


# ---------------------------------------------------------------------------------------------- nodes


async def ask_nodes(
    kubeconfig: Path | None, verb: Verb, only: tuple[str, ...], timeout: float
) -> dict[str, RequestStatus]:
    """Ask these nodes (all, if none is named) the same; their answers by name. Raises `CommandFailed`."""
    async with asking(kubeconfig, verb, timeout) as request:
        known = await request.nodes()
        missing = set(only) - {node.name for node in known}
        if missing or not known:
            raise CommandFailed(
                f"there is no node {', '.join(sorted(missing))}" if missing else "there are no nodes",
                "`perdure nodes` lists them",
            )
        targets = {node.name: _node_target(node.name) for node in known if not only or node.name in only}
        for node in known:
            if node.name in targets:
                await request.write(targets[node.name], node.uid)
        answers = await asyncio.gather(*map(request.answer, targets.values()))
        return dict(zip(targets, answers, strict=True))


def show_answers(answers: Mapping[str, RequestStatus], output: str) -> None:
    """Print what nodes answered. Raises `CommandFailed` if one of them did not do it."""
    if output == "json":
        import msgspec

        print_json({name: msgspec.to_builtins(answer) for name, answer in answers.items()})
    else:
        rows = [[Cell(name), Cell(answer.outcome), Cell(answer.message)] for name, answer in answers.items()]
        print_table(["NODE", "OUTCOME", "MESSAGE"], rows)
    failed = [name for name, answer in answers.items() if answer.outcome != "success"]
    if failed:
        raise CommandFailed(f"not done on {', '.join(failed)}", "the message says why; it may be asked for again")


def _node_target(name: str) -> Target[RuntimeNode]:
    from perdure.api.node import parse_node
    from perdure.kube import paths

    def unanswered(_node: RuntimeNode, so_far: RequestStatus | None) -> str:
        how_far = f" ({so_far.message})" if so_far is not None else ": its agent has not begun"
        return f"node {name} is not done yet{how_far}"

    return Target(f"node {name}", paths.node(name), parse_node, unanswered)
