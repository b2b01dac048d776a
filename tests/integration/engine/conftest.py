"""A rig on the environment's containerd for tests of what only a real engine shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.engine_rig import EngineRig
from tests.contract.engine_rig_containerd import containerd_rig

from rig.clients import Services


@pytest.fixture
async def rig(env: Services, containerd_namespace: str, state_dir: Path) -> AsyncIterator[EngineRig]:
    async with containerd_rig(env, containerd_namespace, state_dir) as made:
        yield made
