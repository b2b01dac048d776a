"""What the engine contract needs of whoever is held to it: an engine, images, and programs to run.

`tests/contract/test_engine_contract.py` runs against each rig that its `rig` fixture makes.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, RuntimeRef, SnapshotKey, Uid
from perdure.api.runtime import PullPolicy, RuntimeSpec
from perdure.plan.certainty import Present
from perdure.plan.world import ArchiveFacts, ImageFacts, TaskFacts, TaskState, Workspace
from perdure.reconcile.ports.engine import ContainerPlan, Engine, EngineView, ResolvedEnv


class Program(Enum):
    """Main processes that the contract runs; the value is the shell line that behaves so."""

    ENDS_ON_TERM = "trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait $!; done"
    IGNORES_TERM = "trap '' TERM; echo ready; while :; do sleep 3600; done"
    EXITS_3 = "exit 3"
    MISSING = "missing"
    """No such file in the image."""


INSTALLATION = InstallationId("11111111-0000-4000-8000-000000000001")
OTHER_INSTALLATION = InstallationId("22222222-0000-4000-8000-000000000002")
IMAGE = "perdure.dev/samples/busybox:1"
OTHER_IMAGE = "perdure.dev/samples/busybox:2"


@dataclass
class EngineRig:
    """One engine under test. `engine_for` gives another one on the same node, for another installation."""

    engine: Engine
    engine_for: Callable[[InstallationId], Engine]
    make_netns: Callable[[RuntimeRef], Awaitable[str]]
    ready: Callable[[RuntimeRef], Awaitable[None]]
    """Wait until the program has said that it is ready, which is after it set its signals up."""

    async def image(self, name: str = IMAGE) -> ImageFacts:
        return await self.engine.ensure_image(name, PullPolicy.IF_NOT_PRESENT)

    async def plan(
        self,
        ref: RuntimeRef,
        key: SnapshotKey,
        program: Program = Program.ENDS_ON_TERM,
        *,
        image: str = IMAGE,
        spec_hash: str = "hash-1",
        spec: RuntimeSpec | None = None,
        restricted: bool = False,
    ) -> ContainerPlan:
        """A container that runs `program`, unless `spec` says otherwise."""
        command = ("/bin/missing",) if program is Program.MISSING else ("/bin/sh", "-c", program.value)
        return ContainerPlan(
            ref=ref,
            id=ref.container_id,
            key=key,
            image=await self.image(image),
            spec=spec or RuntimeSpec(image=image, command=command),
            spec_hash=spec_hash,
            env=ResolvedEnv(()),
            netns=await self.make_netns(ref),
            restricted=restricted,
        )

    async def prepared(self, ref: RuntimeRef, n: int = 1, gate: ArchiveFacts | None = None) -> SnapshotKey:
        """A workspace of the sample image."""
        await self.engine.prepare_workspace(ref, workspace(ref, await self.image(), n, gate))
        return ref.snapshot_key(n)

    async def running(self, ref: RuntimeRef, program: Program = Program.ENDS_ON_TERM) -> SnapshotKey:
        """A workspace, a container and its task."""
        key = await self.prepared(ref)
        await self.engine.create_container(await self.plan(ref, key, program))
        await self.engine.start_task(ref.container_id, key)
        return key

    async def view(self, ref: RuntimeRef, key: SnapshotKey | None = None) -> EngineView:
        return await self.engine.observe(ref, key)

    async def task(self, ref: RuntimeRef) -> TaskFacts:
        """The task that is there; fails where there is none."""
        task = (await self.view(ref)).task
        assert isinstance(task, Present), task
        return task.it

    async def ended(self, ref: RuntimeRef) -> TaskFacts:
        """The task once its main process is over."""
        assert await self.engine.wait_task(ref.container_id, 30)
        task = await self.task(ref)
        assert task.state is TaskState.STOPPED
        return task


def new_ref(name: str = "hermes", kind: Kind = Kind.BOT) -> RuntimeRef:
    """A runtime that nobody has heard of."""
    return RuntimeRef(kind, "agents", name, Uid(str(uuid.uuid4())), NamespaceUid(str(uuid.uuid4())))


def workspace(ref: RuntimeRef, image: ImageFacts, n: int = 1, gate: ArchiveFacts | None = None) -> Workspace:
    return Workspace(ref.snapshot_key(n), n, image.name, image.digest, image.chain_id, gate=gate)


def archive(ref: RuntimeRef, sequence: int) -> ArchiveFacts:
    """An archive that a gate can name."""
    return ArchiveFacts(
        sequence=sequence,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=ref.uid,
        store="default",
        node_id=None,
        snapshot_key=ref.snapshot_key(1),
        image=IMAGE,
        image_digest="sha256:" + "0" * 64,
        chain_id=ChainId("sha256:" + "0" * 64),
        sha256="0" * 64,
        bytes=1,
        entries=1,
        uncompressed_bytes=1,
        empty=False,
    )
