"""A node of the test's own, which the test itself is in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.network.own_node import OwnNode, own_node


@pytest.fixture
def node() -> Iterator[OwnNode]:
    with own_node() as own:
        yield own
