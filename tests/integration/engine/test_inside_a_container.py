"""What a container finds around itself, asked from inside: environment, user, limits, files, and what it may not do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.contract.engine_rig import IMAGE, EngineRig, Program, new_ref
from tests.contract.engine_rig_containerd import output

from perdure.api.names import RuntimeRef
from perdure.api.runtime import Dns, HostAlias, Network, ResourceLimits, ResourceRequests, Resources, RuntimeSpec
from perdure.plan.world import Exit
from perdure.reconcile.ports.engine import ResolvedEnv
from rig.containerd import cgroups_named

pytestmark = [pytest.mark.root, pytest.mark.env]


async def run(
    rig: EngineRig,
    ref: RuntimeRef,
    state_dir: Path,
    script: str,
    *,
    env: tuple[tuple[str, str], ...] = (),
    restricted: bool = False,
    **fields: object,
) -> tuple[Exit, list[str]]:
    """Run a shell script to its end; how it ended and the lines that it printed."""
    key = await rig.prepared(ref)
    spec = RuntimeSpec(image=IMAGE, command=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]
    plan = dataclasses.replace(await rig.plan(ref, key, spec=spec, restricted=restricted), env=ResolvedEnv(env))
    await rig.engine.create_container(plan)
    await rig.engine.start_task(ref.container_id, key)
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    # The shim copies what is printed, and is done with that when it lets the task be deleted, not when the task ends.
    await rig.engine.delete_task(ref.container_id)
    return exit_, output(state_dir, ref).splitlines()


async def test_environment_directory_and_name(rig: EngineRig, state_dir: Path) -> None:
    ref = new_ref("hermes-7")
    exit_, lines = await run(
        rig,
        ref,
        state_dir,
        "env | sort; pwd; hostname; cat /etc/hostname; echo $(WHO) >&2",
        env=(("WHO", "value of two words"), ("PATH", "/bin:/sbin")),
        working_dir="/tmp",
    )
    assert exit_.code == 0
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables["WHO"] == "value of two words"
    assert variables["PATH"] == "/bin:/sbin"
    assert variables["HOSTNAME"] == "hermes-7"
    assert "TERM" not in variables
    # The two streams are copied side by side: only the order within one of them is certain.
    assert lines.count("value of two words") == 1
    assert [line for line in lines if line in ("/tmp", "hermes-7")] == ["/tmp", "hermes-7", "hermes-7"]


async def test_names_of_users_and_groups_are_those_of_the_image(rig: EngineRig, state_dir: Path) -> None:
    _, lines = await run(rig, new_ref(), state_dir, "id -u; id -g; echo $HOME", user="app")
    assert lines[:2] == ["1000", "1000"]
    _, lines = await run(rig, new_ref(), state_dir, "id -u; id -g", user="4711:12")
    assert lines == ["4711", "12"]


async def test_a_container_may_not_escape_its_confinement(rig: EngineRig, state_dir: Path) -> None:
    attempts = {
        "mount": "mount -t tmpfs none /tmp",
        "unshare": "unshare -n true",
        "device": "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        "sysctl": "echo 1 > /proc/sys/kernel/panic",
        "kcore": "test -s /proc/kcore && head -c1 /proc/kcore",
        "cgroup": "mkdir /sys/fs/cgroup/memory/escape",
        "hosts": "echo x >> /etc/hosts",
        "network": "ip link add type dummy",
        "time": "date -s 2000-01-01 && date +%Y | grep 2000",
        "raw socket": "ping -c1 -w1 127.0.0.1",
    }
    script = "; ".join(f"({command}) >/dev/null 2>&1 && echo '{name}'" for name, command in attempts.items())
    script += "; grep -E '^(NoNewPrivs|Seccomp|CapBnd|CapEff):' /proc/self/status"
    _, lines = await run(rig, new_ref(), state_dir, script)
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert [line for line in lines if line in attempts] == []
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    # All of Pod Security `baseline` and nothing else (include/uapi/linux/capability.h).
    baseline = {0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 27, 29, 31}
    assert int(status["CapBnd"], 16) == sum(1 << bit for bit in baseline)


async def test_a_restricted_container_has_no_capabilities_at_all(rig: EngineRig, state_dir: Path) -> None:
    _, lines = await run(
        rig, new_ref(), state_dir, "grep -E '^Cap(Bnd|Eff|Prm|Inh|Amb):' /proc/self/status", user="app", restricted=True
    )
    assert len(lines) == 5
    assert all(int(line.split()[1], 16) == 0 for line in lines)


async def test_only_loopback_is_there_and_it_is_up(rig: EngineRig, state_dir: Path) -> None:
    _, lines = await run(rig, new_ref(), state_dir, "ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1'")
    assert "lo" in lines
    assert lines[-1] == "1"
    assert "eth0" not in lines


async def test_name_resolution_files_are_those_of_the_spec(rig: EngineRig, state_dir: Path) -> None:
    dns = Dns(nameservers=("192.0.2.53",), searches=("bots.example",), options=("ndots:2",))
    aliases = (HostAlias(ip="192.0.2.7", hostnames=("db", "db.example")),)
    _, lines = await run(
        rig,
        new_ref("hermes"),
        state_dir,
        "cat /etc/resolv.conf /etc/hosts; awk '$2 == \"/etc/hosts\" {print $4}' /proc/mounts",
        network=Network(dns=dns),
        host_aliases=aliases,
    )
    assert lines[:3] == ["nameserver 192.0.2.53", "search bots.example", "options ndots:2"]
    assert "192.0.2.7\tdb db.example" in lines
    assert "127.0.1.1\thermes" in lines
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(lines[-1].split(","))


async def test_limits_are_the_cgroups(rig: EngineRig, containerd_namespace: str) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    spec = RuntimeSpec(
        image=IMAGE,
        command=("/bin/sh", "-c", Program.ENDS_ON_TERM.value),
        resources=Resources(
            requests=ResourceRequests(cpu="250m"), limits=ResourceLimits(cpu="500m", memory="64Mi", pids=33)
        ),
    )
    await rig.engine.create_container(await rig.plan(ref, key, spec=spec))
    await rig.engine.start_task(ref.container_id, key)
    folders = cgroups_named(f"{containerd_namespace}/{ref.container_id}")
    found = {
        file.name: file.read_text().split()
        for folder in folders
        for file in folder.iterdir()
        if file.name
        in {
            "memory.limit_in_bytes",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.shares",
            "pids.max",
            "memory.max",
            "memory.swap.max",
            "cpu.max",
            "memory.memsw.limit_in_bytes",
        }
        and (file.parent / "tasks").exists() | (file.parent / "cgroup.procs").exists()
    }
    assert found["pids.max"] == ["33"]
    if "memory.max" in found:
        assert (found["memory.max"], found["memory.swap.max"]) == ([str(64 << 20)], ["0"])
        assert found["cpu.max"] == ["50000", "100000"]
    else:
        assert found["memory.limit_in_bytes"] == [str(64 << 20)]
        assert found.get("memory.memsw.limit_in_bytes", [str(64 << 20)]) == [str(64 << 20)]
        assert (found["cpu.cfs_quota_us"], found["cpu.cfs_period_us"]) == (["50000"], ["100000"])
        assert found["cpu.shares"] == ["256"]


async def test_a_process_that_takes_too_much_memory_is_named_oom(rig: EngineRig, state_dir: Path) -> None:
    exit_, _ = await run(
        rig,
        new_ref(),
        state_dir,
        "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
        resources=Resources(limits=ResourceLimits(memory="32Mi")),
    )
    assert (exit_.code, exit_.oom) == (137, True)


async def test_a_killed_process_is_not_named_oom(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert (exit_.code, exit_.oom) == (137, False)


async def test_what_was_written_outlives_the_container(rig: EngineRig, state_dir: Path) -> None:
    ref = new_ref()
    await run(rig, ref, state_dir, "echo kept > /data/state; echo kept > /etc/mine; echo first")
    await rig.engine.delete_task(ref.container_id)
    await rig.engine.remove_container(ref.container_id)
    _, lines = await run(rig, ref, state_dir, "cat /data/state /etc/mine; echo second")
    assert lines == ["first", "kept", "kept", "second"]


async def test_nothing_but_logs_is_left_of_a_removed_runtime(
    rig: EngineRig, state_dir: Path, containerd_namespace: str
) -> None:
    ref = new_ref()
    await run(rig, ref, state_dir, "true")
    await rig.engine.delete_task(ref.container_id)
    await rig.engine.remove_container(ref.container_id)
    await rig.engine.remove_workspace(ref.snapshot_key(1))
    assert list((state_dir / "runtimes").iterdir()) == []
    assert (state_dir / "logs" / f"agents_{ref.name}_{ref.uid}").stat().st_mode & 0o777 == 0o750
    assert cgroups_named(f"{containerd_namespace}/{ref.container_id}") == []
