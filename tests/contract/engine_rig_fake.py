"""The engine contract's rig for the fake engine of the crash matrix."""

from __future__ import annotations

from pathlib import Path

from tests.contract.engine_rig import IMAGE, INSTALLATION, OTHER_IMAGE, EngineRig
from tests.fakes.engine import FakeEngine, FakeMachine, sample_images

from perdure.api.names import RuntimeRef


def fake_rig(disk: Path) -> EngineRig:
    """A rig on a machine in memory; only the folders of layers are on `disk`."""
    machine = FakeMachine(images=sample_images({IMAGE: "one", OTHER_IMAGE: "two"}), disk=disk)

    async def make_netns(ref: RuntimeRef) -> str:
        return f"/run/netns/{ref.uid}"

    async def ready(ref: RuntimeRef) -> None:
        assert ref.container_id in machine.tasks

    return EngineRig(FakeEngine(machine, INSTALLATION), lambda other: FakeEngine(machine, other), make_netns, ready)
