"""Plugins that fail cost nobody a network: not who asks for one, not who has one; and what they leave is swept."""

from __future__ import annotations

import pytest
from tests.integration.network.faulty_plugins import FAULTS
from tests.integration.network.own_node import own_node
from tests.integration.network.starts import play

pytestmark = pytest.mark.root

STARTS = 200


def test_everybody_gets_a_network_and_nothing_is_left_while_a_fifth_of_the_plugins_fail() -> None:
    with own_node() as node:
        outcome = play(node, total=STARTS, seed=4)
    assert (outcome.attached, outcome.lost) == (STARTS, [])
    assert outcome.left == []
    assert set(outcome.told) == set(FAULTS), "a fault that never happened shows nothing"
    assert sum(outcome.failures.values()) > 0, "nothing failed so that it had to be tried again"
    assert outcome.leaking > 0, "nothing was left that had to be swept"
    assert outcome.words > 0
