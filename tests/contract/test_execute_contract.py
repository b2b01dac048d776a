"""What every `Engine` does with commands beside a main process: containerd itself, and whatever stands in for it."""

from __future__ import annotations

import time

import pytest
from tests.contract.engine_rig import EngineRig, Program, new_ref
from tests.contract.test_engine_contract import rig

from perdure.api.names import RuntimeRef
from perdure.api.runtime import RuntimeSpec
from perdure.plan.world import TaskState
from perdure.reconcile.ports.engine import ContainerPlan, ResolvedEnv
from perdure.reconcile.ports.errors import EngineRefused

__all__ = ["rig"]


def sh(line: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", line)


async def with_secret(rig: EngineRig, ref: RuntimeRef) -> None:
    key = await rig.prepared(ref)
    made = await rig.plan(ref, key)
    spec = RuntimeSpec(image=made.image.name, command=sh(Program.ENDS_ON_TERM.value))
    env = ResolvedEnv((("TOKEN", "s3cr3t-value"), ("COLOUR", "purple")))
    plan = ContainerPlan(made.ref, made.id, key, made.image, spec, "hash-1", env, made.netns, made.restricted)
    await rig.engine.create_container(plan)
    await rig.engine.start_task(ref.container_id, key)


@pytest.mark.parametrize("code", [0, 1, 3])
async def test_a_command_has_its_exit_code(rig: EngineRig, code: int) -> None:
    ref = new_ref()
    await rig.running(ref)
    assert (await rig.engine.execute(ref.container_id, sh(f"exit {code}"), 10)).code == code


async def test_what_it_prints_is_kept_without_the_secrets(rig: EngineRig) -> None:
    ref = new_ref()
    await with_secret(rig, ref)
    for line, said in (("echo $COLOUR; exit 1", "purple"), ("echo $TOKEN; exit 1", "***")):
        done = await rig.engine.execute(ref.container_id, sh(line), 10, frozenset({"TOKEN"}))
        assert (done.code, done.output) == (1, said)


async def test_a_command_that_is_not_there_fails(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    done = await rig.engine.execute(ref.container_id, ("/bin/missing",), 10)
    assert done.code is not None
    assert done.code > 125
    assert "/bin/missing" in done.output


async def test_a_command_whose_time_is_up_has_no_code_and_leaves_the_main_process_alone(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    before = await rig.task(ref)
    began = time.monotonic()
    assert (await rig.engine.execute(ref.container_id, sh("sleep 3600"), 0.5)).code is None
    assert time.monotonic() - began < 15
    assert await rig.task(ref) == before
    assert before.state is TaskState.RUNNING


async def test_without_a_main_process_nothing_is_run(rig: EngineRig) -> None:
    ref = new_ref()
    with pytest.raises(EngineRefused):
        await rig.engine.execute(ref.container_id, sh("exit 0"), 5)
    await rig.running(ref, Program.EXITS_3)
    await rig.ended(ref)
    with pytest.raises(EngineRefused):
        await rig.engine.execute(ref.container_id, sh("exit 0"), 5)
