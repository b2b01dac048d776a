"""What an agent opens because of the name servers that its node, and so every runtime, asks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.integration.network.own_node import OwnNode, run

from perdure.cli import networks
from perdure.engine.oci.node import detect

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("name_server", "opened"), [("169.254.169.254", True), ("fd20:ce::254", True), ("192.0.2.53", False)]
)
async def test_a_cloud_s_name_server_is_open_to_runtimes_of_a_node_that_asks_it(
    node: OwnNode, monkeypatch: pytest.MonkeyPatch, name_server: str, opened: bool
) -> None:
    told = node.folder / "resolv.conf"
    told.write_text(f"search here\nnameserver {name_server}\n")
    found = replace(detect(), resolv_conf=told)
    monkeypatch.setattr(networks, "detect", lambda: found)
    node.write()
    agent, plan = await node.agent(), node.plan()
    await agent.sandbox.create(plan)
    await agent.sandbox.attach(plan)
    lines = [line.strip() for line in run("nft", "list", "ruleset").splitlines()]
    accepting = [line for line in lines if f"daddr {name_server} " in line]
    assert len(accepting) == (1 if opened else 0)
    assert all("udp . 53" in line and "tcp . 53" in line and line.endswith("accept") for line in accepting)
