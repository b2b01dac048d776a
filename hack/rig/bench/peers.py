"""Who does the same work without Perdure: ``ctr``, and our own engine adapter without a loop or an API.

Both on the stage's containerd, with the same image and limits, seccomp on, and a network namespace of their own, with
nothing in it but loopback where nothing else is asked for. Called by the benchmarks.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perdure.api.names import InstallationId, Kind, NamespaceUid, RuntimeRef, SnapshotKey, Uid
from perdure.api.network import Network, NetworkMode
from perdure.api.runtime import PullPolicy, ResourceLimits, Resources, RuntimeSpec
from perdure.engine.containerd import ContainerdEngine, ContainerdSettings
from perdure.network.none import LoopbackSandbox
from perdure.plan.world import HostPort, Workspace
from perdure.reconcile.ports.engine import ContainerPlan, ResolvedEnv, nothing_more
from perdure.reconcile.ports.sandbox import Sandbox, SandboxPlan
from rig.bench.cluster import BenchmarkError
from rig.bench.stage import IMAGE, MEMORY_MIB, Stage, spoke
from rig.environment import Environment
from rig.images import write_samples

COMMAND_SECONDS = 120.0
KILL_SECONDS = 20.0
CTR_NAMESPACE = "bench-ctr"
ENGINE_NAMESPACE = "bench-engine"


@dataclass(frozen=True, slots=True)
class Ctr:
    """Containers made by ``ctr``; each command's time is that of its whole process."""

    environment: Environment

    @classmethod
    async def prepared(cls, environment: Environment) -> "Ctr":
        """With the image in a containerd namespace of its own."""
        await _import_image(environment, CTR_NAMESPACE)
        (environment.directory / "ctr-logs").mkdir(exist_ok=True)
        return cls(environment)

    async def run(self, netns: Path | None = None) -> tuple[str, float]:
        """``ctr run -d``, in a network namespace that is there or in one that runc makes; the container's id, and seconds."""
        container = f"c-{uuid.uuid4().hex[:12]}"
        engine = self.environment.engine
        # fmt: off
        seconds = await self._command(
            "run", "-d", "--snapshotter", "overlayfs", "--seccomp",
            "--memory-limit", str(MEMORY_MIB << 20), "--cpus", "1",
            "--runc-root", str(engine.runc_root), "--cgroup", f"{engine.cgroup_parent}/{container}",
            "--log-uri", f"file://{self.log(container)}",
            *(("--with-ns", f"network:{netns}") if netns is not None else ()), IMAGE, container,
        )
        # fmt: on
        return container, seconds

    async def start_again(self, container: str) -> float:
        """Kill the main process and clear its task away, then ``ctr task start`` on the same snapshot; seconds of that
        last step, to the new process's first line."""
        await spoke(self.log(container))
        await self._command("tasks", "rm", "--force", container)
        self.log(container).unlink()
        began = time.perf_counter()
        await self._command("tasks", "start", "-d", "--log-uri", f"file://{self.log(container)}", container)
        return await spoke(self.log(container)) - began

    async def remove(self, container: str) -> None:
        """Kill it and remove everything of it."""
        await self._command("tasks", "rm", "--force", container)
        await self._command("containers", "rm", container)
        self.log(container).unlink(missing_ok=True)

    def log(self, container: str) -> Path:
        """What the container prints."""
        return self.environment.directory / "ctr-logs" / f"{container}.log"

    async def _command(self, *arguments: str) -> float:
        engine = self.environment.engine
        prefix = (str(engine.program("ctr")), "--address", str(engine.address), "--namespace", CTR_NAMESPACE)
        pipe = asyncio.subprocess.PIPE
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*prefix, *arguments, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(COMMAND_SECONDS):
            _, errors = await process.communicate()
        seconds = time.perf_counter() - began
        if process.returncode != 0:
            raise BenchmarkError(f"ctr {' '.join(arguments)}: {errors.decode(errors='replace').strip()}")
        return seconds


@dataclass(frozen=True, slots=True)
class Way:
    """How a runtime comes to its network. ``serial``: the network first, then the container; else both at a time."""

    sandbox: Sandbox
    mode: NetworkMode = NetworkMode.NONE
    ports: tuple[HostPort, ...] = ()
    serial: bool = False


@dataclass(frozen=True, slots=True)
class BareEngine:
    """Our engine adapter, called straight: sandbox, workspace, container, task."""

    engine: ContainerdEngine
    sandbox: LoopbackSandbox
    state_directory: Path

    @classmethod
    async def prepared(cls, stage: Stage) -> "BareEngine":
        """With the image in a containerd namespace of its own. Call `close` at the end."""
        environment = stage.environment
        await _import_image(environment, ENGINE_NAMESPACE)
        state = environment.directory / "engine-state"
        settings = ContainerdSettings(
            address=str(environment.engine.address),
            installation=InstallationId(str(uuid.uuid4())),
            state_dir=state,
            namespace=ENGINE_NAMESPACE,
            runc_root=str(environment.engine.runc_root),
            cgroup_parent=environment.cgroup_parent,
        )
        return cls(ContainerdEngine(settings), LoopbackSandbox(environment.run_directory / "engine"), state)

    async def close(self) -> None:
        await self.engine.close()

    async def start_and_remove(self, way: Way | None = None) -> float:
        """Seconds from nothing to a started task; it is removed again before this returns."""
        way = way or Way(self.sandbox)
        ref = RuntimeRef(
            Kind.BOT, "bench", uuid.uuid4().hex[:12], Uid(str(uuid.uuid4())), NamespaceUid(str(uuid.uuid4()))
        )
        key = ref.snapshot_key(1)
        limits = ResourceLimits(cpu="1", memory=f"{MEMORY_MIB}Mi")
        spec = RuntimeSpec(image=IMAGE, resources=Resources(limits=limits), network=Network(mode=way.mode))
        began = time.perf_counter()
        await self._start(SandboxPlan(ref, spec, way.ports), key, way)
        seconds = time.perf_counter() - began
        await self.engine.signal_task(ref.container_id, "SIGKILL")
        if not await self.engine.wait_task(ref.container_id, KILL_SECONDS):
            raise BenchmarkError(f"the main process of {ref.container_id} outlives SIGKILL")
        await self.engine.delete_task(ref.container_id)
        await self.engine.remove_container(ref.container_id)
        await self.engine.remove_workspace(key)
        await way.sandbox.remove(ref)
        await self.engine.forget(ref)
        return seconds

    async def _start(self, plan: SandboxPlan, key: SnapshotKey, way: Way) -> None:
        ref = plan.ref
        image = await self.engine.ensure_image(IMAGE, PullPolicy.IF_NOT_PRESENT)
        workspace = Workspace(key, 1, image.name, image.digest, image.chain_id)
        if way.serial:
            facts = await way.sandbox.create(plan)
            await way.sandbox.attach(plan)
            await self.engine.prepare_workspace(ref, workspace)
        else:
            facts, _ = await asyncio.gather(way.sandbox.create(plan), self.engine.prepare_workspace(ref, workspace))
        env = ResolvedEnv(())
        await self.engine.create_container(
            ContainerPlan(ref, ref.container_id, key, image, plan.spec, "bench", env, facts.netns, restricted=False)
        )
        attach = nothing_more if way.serial else partial(way.sandbox.attach, plan)
        await self.engine.start_task(ref.container_id, key, attach)


async def _import_image(environment: Environment, namespace: str) -> None:
    archives = await asyncio.to_thread(write_samples, environment.directory / "images")
    await asyncio.to_thread(environment.engine.import_image, archives[IMAGE], namespace)
