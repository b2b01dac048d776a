"""Answers what a person asks of this node by the annotation `perdure.dev/request` of its RuntimeNode, each request once.

The agent runs one `NodeRequests`, with what it can do by verb. What a watch shows is only a hint to look: what the API
server has is answered, also after a kill that cut an answer off.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import NodeName
from perdure.api.node import RuntimeNode
from perdure.api.request import UNDER_WAY, Request, RequestId, Verb
from perdure.api.runtime import RequestStatus
from perdure.plan.world import Code, Outcome
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.cluster import Cluster
from perdure.reconcile.ports.errors import PortError

RETRY_SECONDS = 5.0

Handler = Callable[[RequestId], Awaitable[RequestStatus]]
"""Does what is asked for; it may be called again with the same id. What it raises (`PortError`) has it called again."""

log = structlog.get_logger(__name__)


class NodeRequests:
    """One request at a time; a newer one waits until the one before it is answered."""

    def __init__(self, cluster: Cluster, node: NodeName, guards: Guards, handlers: Mapping[Verb, Handler]) -> None:
        self._cluster = cluster
        self._node = node
        self._guards = guards
        self._handlers = handlers
        self._asked = asyncio.Event()

    def node_seen(self, node: RuntimeNode) -> None:
        """A node as a watch shows it: any, at any time, also an old one."""
        if node.name == self._node and _unanswered(node) is not None:
            self._asked.set()

    async def run(self) -> None:
        """Answer requests as they are seen, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self.look()
            except PortError as error:
                log.warning("node_request_not_answered", error=str(error))
                self._asked.set()
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.8, 1.2))

    async def look(self) -> None:
        """Do what the node is asked for and has not answered yet. Raises `PortError` from the API server."""
        node = await self._cluster.read_node(self._node)
        request = _unanswered(node) if node is not None else None
        if request is None:
            return
        answer = await self._answer(request)
        log.info("node_request_answered", request=answer.id, outcome=answer.outcome, message=answer.message)
        await self._cluster.answer_node(self._node, answer)

    async def _answer(self, request: Request) -> RequestStatus:
        if request.verb is None:
            return said(request.id, Outcome.FAILURE, Code.INVALID_REQUEST.value, request.problem)
        freeze = self._guards.freeze
        if freeze is not None and freeze.reason is Reason.IDENTITY_CHANGED:
            # Whoever asks may be of another cluster, and what is asked for would be done to the wrong ledger.
            return said(request.id, Outcome.FAILURE, Code.CONFLICT.value, freeze.message)
        return await self._handlers[request.verb](request.id)


def said(id_: RequestId, outcome: Outcome, code: str, message: str) -> RequestStatus:
    """The answer to a request; `code` is empty where all was done as asked."""
    return RequestStatus(id=id_, outcome=outcome.value, code=code, message=message[:1024])


def _unanswered(node: RuntimeNode) -> Request | None:
    request, last = node.request, node.status.last_request
    if request is not None and last is not None and last.id == request.id and last.outcome != UNDER_WAY:
        return None
    return request
