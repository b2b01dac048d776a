"""Commands beside a real main process: hostile ones, ones that an agent left behind, and what they leave on the node."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest
from tests.contract.engine_rig import EngineRig, new_ref
from tests.contract.engine_rig_containerd import settings

from perdure.api.names import RuntimeRef
from perdure.engine.containerd import ContainerdEngine
from perdure.engine.containerd.rpc import Connection
from perdure.engine.containerd.services import Services as EngineServices
from perdure.reconcile.ports.errors import EngineRefused
from rig.clients import Services
from rig.processes import wait_until

pytestmark = [pytest.mark.root, pytest.mark.env]


def sh(line: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", line)


def inside(namespace: str, ref: RuntimeRef) -> dict[int, str]:
    """Live processes of the container but its shim: pid and command line."""
    procs = Path("/sys/fs/cgroup/memory", namespace, ref.container_id, "cgroup.procs")
    if not procs.exists():
        procs = Path("/sys/fs/cgroup", namespace, ref.container_id, "cgroup.procs")
    found = {}
    for pid in procs.read_text().split():
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text:
            found[int(pid)] = text
    return found


async def test_a_command_is_killed_with_all_that_came_out_of_it(rig: EngineRig, containerd_namespace: str) -> None:
    ref = new_ref()
    await rig.running(ref)
    await rig.ready(ref)
    # A child, an orphan, and one that begins a session of its own and is nobody's child any more.
    line = "sleep 1001 & (sleep 1002 &) ; setsid sh -c 'sleep 1003 & sleep 1004' & sleep 1005"
    done = await rig.engine.execute(ref.container_id, sh(line), 1.0)
    assert done.code is None
    left = [text for text in inside(containerd_namespace, ref).values() if "sleep 100" in text]
    assert left == []
    assert any("sleep 3600" in text for text in inside(containerd_namespace, ref).values()), "the main process's child"


async def test_one_that_prints_for_ever_costs_little_and_ends_in_time(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    began, busy = time.monotonic(), time.process_time()
    done = await rig.engine.execute(ref.container_id, sh("yes flood"), 2.0)
    assert done.code is None
    assert time.monotonic() - began < 20
    assert time.process_time() - busy < 1.5
    assert done.output.startswith("flood\nflood")
    assert len(done.output) <= 4096


async def test_a_megabyte_of_output_and_an_end_is_no_failure(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    done = await rig.engine.execute(ref.container_id, sh("head -c 1000000 /dev/zero; exit 7"), 20)
    assert done.code == 7


async def test_children_that_stay_behind_delay_nobody(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    began = time.monotonic()
    assert (await rig.engine.execute(ref.container_id, sh("sleep 30 & exit 0"), 10)).code == 0
    assert time.monotonic() - began < 5


async def test_commands_at_once_do_not_wait_for_one_another(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    hanging = asyncio.ensure_future(rig.engine.execute(ref.container_id, sh("sleep 3600"), 8))
    others = await asyncio.gather(
        *(rig.engine.execute(ref.container_id, sh(f"echo {n}; exit {n}"), 20) for n in range(6))
    )
    assert not hanging.done()
    assert [(done.code, done.output) for done in others] == [(n, str(n)) for n in range(6)]
    assert (await hanging).code is None


async def test_nothing_is_left_in_the_state_folder(rig: EngineRig, state_dir: Path) -> None:
    ref = new_ref()
    await rig.running(ref)
    for line in ("exit 0", "exit 1", "/bin/missing"):
        await rig.engine.execute(ref.container_id, sh(line), 10)
    await rig.engine.execute(ref.container_id, ("/bin/missing",), 10)
    await rig.engine.execute(ref.container_id, sh("sleep 99"), 0.2)
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    await rig.ended(ref)
    with pytest.raises(EngineRefused):
        await rig.engine.execute(ref.container_id, sh("exit 0"), 10)
    assert list((state_dir / "execs").iterdir()) == []


async def test_a_shim_that_waits_for_the_output_of_a_killed_agent_is_let_go(
    rig: EngineRig, env: Services, containerd_namespace: str, state_dir: Path
) -> None:
    ref = new_ref()
    await rig.running(ref)
    connection = Connection(str(env.containerd_address), containerd_namespace)
    tasks = EngineServices(connection, "overlayfs").tasks
    record = await EngineServices(connection, "overlayfs").containers.get(ref.container_id)
    output = state_dir / "execs" / ref.container_id / "probe-left"
    output.parent.mkdir(parents=True)
    os.mkfifo(output)
    process = msgspec.json.decode(record.spec)["process"] | {"args": sh("sleep 3001")}
    await tasks.exec(ref.container_id, output.name, msgspec.json.encode(process), str(output))
    starting = asyncio.ensure_future(tasks.start_exec(ref.container_id, output.name))
    await asyncio.wait({starting}, timeout=1.0)
    assert not starting.done(), "nobody reads its output"

    next_one = ContainerdEngine(settings(env, containerd_namespace, state_dir))
    await asyncio.wait_for(starting, 10)
    assert (await next_one.execute(ref.container_id, sh("exit 5"), 20)).code == 5
    assert [text for text in inside(containerd_namespace, ref).values() if "sleep 3001" in text] == []
    assert list((state_dir / "execs").iterdir()) == []
    await next_one.close()
    await connection.close()


async def test_what_a_killed_agent_left_behind_is_ended_by_the_next(
    rig: EngineRig, env: Services, containerd_namespace: str, state_dir: Path
) -> None:
    ref = new_ref()
    await rig.running(ref)
    under_way = asyncio.ensure_future(rig.engine.execute(ref.container_id, sh("sleep 2001 & sleep 2002"), 3600))
    await asyncio.to_thread(
        wait_until,
        lambda: any("sleep 2001" in text for text in inside(containerd_namespace, ref).values()),
        "the command has begun",
        seconds=20,
    )
    assert isinstance(rig.engine, ContainerdEngine)
    await rig.engine._execs.close()  # as abrupt as a kill: nothing is cleared
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    assert any("sleep 2001" in text for text in inside(containerd_namespace, ref).values())

    another = ContainerdEngine(settings(env, containerd_namespace, state_dir))
    assert (await another.execute(ref.container_id, sh("exit 4"), 20)).code == 4
    await another.close()
    assert [text for text in inside(containerd_namespace, ref).values() if "sleep 200" in text] == []
    assert list((state_dir / "execs").iterdir()) == []


async def test_what_hid_its_environment_from_us_ends_with_the_container(
    rig: EngineRig, containerd_namespace: str
) -> None:
    ref = new_ref()
    await rig.running(ref)
    # Nobody's child any more, in a session of its own, without the mark.
    line = "(unset PERDURE_PROBE; setsid sh -c 'sleep 4001 & sleep 4002' &); sleep 4003"
    assert (await rig.engine.execute(ref.container_id, sh(line), 1.0)).code is None
    left = inside(containerd_namespace, ref)
    hidden = {pid: text for pid, text in left.items() if "sleep 400" in text}
    assert {text.strip() for text in hidden.values() if " -c " not in text} == {"sleep 4001", "sleep 4002"}
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    await rig.ended(ref)
    assert not hidden.keys() & set(map(int, filter(str.isdigit, os.listdir("/proc"))))
