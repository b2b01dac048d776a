"""Probes through the network of a machine in memory: all of them answer as `FakeMachine.unwell` says."""

from __future__ import annotations

from tests.fakes.engine import FakeMachine

from perdure.api.probes import HttpGetAction
from perdure.reconcile.ports.probing import Endpoint, ProbeOutcome, ProbeResult


class FakeNetworkProbes:
    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def http(self, to: Endpoint, action: HttpGetAction, seconds: float) -> ProbeResult:
        return self._answer(to)

    async def tcp(self, to: Endpoint, seconds: float) -> ProbeResult:
        return self._answer(to)

    async def udp(self, to: Endpoint, payload: bytes, seconds: float) -> ProbeResult:
        return self._answer(to)

    def _answer(self, to: Endpoint) -> ProbeResult:
        if not to.netns:
            return ProbeResult(ProbeOutcome.UNKNOWN, "no network namespace")
        if self._machine.unwell is not None:
            return ProbeResult(ProbeOutcome.FAILURE, self._machine.unwell)
        return ProbeResult(ProbeOutcome.SUCCESS)
