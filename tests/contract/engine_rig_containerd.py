"""The engine contract's rig for a real containerd: a namespace of the test's own in the environment's engine."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contract.engine_rig import INSTALLATION, EngineRig

from perdure.api.names import InstallationId, RuntimeRef
from perdure.api.runtime import RuntimeSpec
from perdure.engine.containerd import ContainerdEngine, ContainerdSettings
from perdure.network.none import LoopbackSandbox
from perdure.reconcile.ports.sandbox import SandboxPlan
from rig.clients import Services
from rig.processes import wait_until


def settings(
    env: Services, namespace: str, state_dir: Path, installation: InstallationId = INSTALLATION
) -> ContainerdSettings:
    """Settings for the test's own namespace; its name is its cgroup parent, too."""
    return ContainerdSettings(
        address=str(env.containerd_address),
        namespace=namespace,
        installation=installation,
        state_dir=state_dir,
        runc_root=str(env.runc_root),
        cgroup_parent=f"/{namespace}",
    )


def output(state_dir: Path, ref: RuntimeRef, n: int = 1) -> str:
    """What the container on generation `n` has printed."""
    file = state_dir / "logs" / f"{ref.namespace}_{ref.name}_{ref.uid}" / f"{n}.log"
    return file.read_text() if file.exists() else ""


@asynccontextmanager
async def containerd_rig(env: Services, namespace: str, state_dir: Path) -> AsyncIterator[EngineRig]:
    """A rig whose containers are in `namespace`; its network namespaces and connections end with it."""
    run_dir = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    sandbox = LoopbackSandbox(run_dir)
    engines: list[ContainerdEngine] = []
    made: dict[str, RuntimeRef] = {}

    def engine_for(installation: InstallationId) -> ContainerdEngine:
        engines.append(ContainerdEngine(settings(env, namespace, state_dir, installation)))
        return engines[-1]

    async def make_netns(ref: RuntimeRef) -> str:
        made[ref.uid] = ref
        return (await sandbox.create(SandboxPlan(ref, RuntimeSpec(image="none")))).netns

    async def ready(ref: RuntimeRef) -> None:
        await asyncio.to_thread(
            wait_until, lambda: "ready" in output(state_dir, ref), f"{ref} says that it is ready", seconds=30
        )

    try:
        yield EngineRig(engine_for(INSTALLATION), engine_for, make_netns, ready)
    finally:
        for ref in made.values():
            await sandbox.remove(ref)
        for engine in engines:
            await engine.close()
        await asyncio.to_thread(shutil.rmtree, run_dir)
