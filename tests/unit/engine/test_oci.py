"""The OCI spec that comes out of a plan."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.runtime import ResourceLimits, ResourceRequests, Resources, RuntimeSpec
from perdure.engine.oci import schema
from perdure.engine.oci.builder import BASELINE_CAPABILITIES, MountedFiles, Surroundings, build_spec
from perdure.engine.oci.limits import cgroup_limits
from perdure.engine.oci.node import NodeFeatures, detect
from perdure.engine.oci.process import argument_vector, environment, expand, working_directory
from perdure.engine.oci.seccomp import default_profile
from perdure.engine.oci.users import resolve_user
from perdure.plan.world import ImageFacts
from perdure.reconcile.ports.engine import ContainerPlan, ResolvedEnv
from perdure.reconcile.ports.errors import EngineRefused
from perdure.reconcile.ports.exec_limits import STRING_BYTES, TOTAL_BYTES

REF = RuntimeRef(Kind.BOT, "agents", "hermes", Uid("u-1"), NamespaceUid("n-1"))
NODE = NodeFeatures("x86_64", False, True, "", "Europe/Berlin", Path("/etc/resolv.conf"))
FILES = MountedFiles(Path("/s/resolv.conf"), Path("/s/hosts"), Path("/s/hostname"))
AROUND = Surroundings(schema.User(uid=0, gid=0), FILES, "/perdure", NODE)
IMAGE = ImageFacts("i", "sha256:d", ChainId("sha256:c"), entrypoint=("/entry",), cmd=("a", "b"), env=("LANG=C",))
PLAN = ContainerPlan(
    ref=REF,
    id=REF.container_id,
    key=REF.snapshot_key(1),
    image=IMAGE,
    spec=RuntimeSpec(image="i"),
    spec_hash="h",
    env=ResolvedEnv((("TOKEN", "secret"),)),
    netns="/run/netns/u-1",
    restricted=False,
)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbad line\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nbig:x:99999999999:app\nstaff:x:50:app\n"


def spec(plan: ContainerPlan = PLAN, around: Surroundings = AROUND) -> Any:
    return json.loads(schema.encode(build_spec(plan, around)))


def test_the_spec_is_safe_by_default() -> None:
    made = spec()
    process, linux = made["process"], made["linux"]
    assert process["noNewPrivileges"] is True
    assert process["capabilities"]["bounding"] == list(BASELINE_CAPABILITIES)
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "devices" not in linux
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"/proc/kcore", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert "/proc/sys" in linux["readonlyPaths"]
    assert "rlimits" not in process
    assert "oomScoreAdj" not in process


def test_no_namespace_of_the_host_is_shared() -> None:
    found = {entry["type"]: entry.get("path") for entry in spec()["linux"]["namespaces"]}
    assert found == {"pid": None, "ipc": None, "uts": None, "mount": None, "network": "/run/netns/u-1"}


def test_only_our_own_three_files_come_from_the_host() -> None:
    binds = [mount for mount in spec()["mounts"] if mount["type"] == "bind"]
    assert {mount["destination"]: mount["source"] for mount in binds} == {
        "/etc/resolv.conf": "/s/resolv.conf",
        "/etc/hosts": "/s/hosts",
        "/etc/hostname": "/s/hostname",
    }
    assert all({"ro", "nosuid", "nodev", "noexec"} <= set(mount["options"]) for mount in binds)


def test_the_whole_root_lasts() -> None:
    destinations = {mount["destination"] for mount in spec()["mounts"]}
    assert not destinations & {"/run", "/tmp", "/var/run"}
    assert spec()["root"] == {"path": "rootfs"}


def test_version_2_of_cgroups_has_its_own_namespace_and_view() -> None:
    made = spec(around=replace(AROUND, node=replace(NODE, cgroup2=True)))
    assert "cgroup" in {entry["type"] for entry in made["linux"]["namespaces"]}
    (mount,) = (mount for mount in made["mounts"] if mount["type"] == "cgroup")
    assert "ro" in mount["options"]
    assert "cgroup" not in {mount["type"] for mount in spec()["mounts"]}


def test_the_cgroup_is_below_the_parent() -> None:
    assert spec()["linux"]["cgroupsPath"] == "/perdure/br-u-1"
    assert spec(around=replace(AROUND, cgroup_parent="/"))["linux"]["cgroupsPath"] == "/br-u-1"


def test_restricted_drops_everything_and_refuses_root() -> None:
    plan = replace(PLAN, restricted=True)
    with pytest.raises(EngineRefused, match="root") as caught:
        build_spec(plan, AROUND)
    assert (caught.value.reason, caught.value.user_error) == (Reason.POD_SECURITY, True)
    made = spec(plan, replace(AROUND, user=schema.User(uid=1000, gid=1000)))
    assert made["process"]["capabilities"] == {}
    assert made["process"]["user"] == {"uid": 1000, "gid": 1000}


def test_apparmor_is_asked_for_only_where_it_is() -> None:
    assert "apparmorProfile" not in spec()["process"]
    made = spec(around=replace(AROUND, node=replace(NODE, apparmor_profile="cri-containerd.apparmor.d")))
    assert made["process"]["apparmorProfile"] == "cri-containerd.apparmor.d"


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ("/entry", "a", "b")),
        ((), ("x",), ("/entry", "x")),
        (("/c",), (), ("/c",)),
        (("/c",), ("x",), ("/c", "x")),
    ],
)
def test_command_and_args_mean_what_they_mean_in_a_pod(
    command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert argument_vector(entrypoint=("/entry",), cmd=("a", "b"), command=command, args=args) == expected


def test_variables_in_commands_are_expanded() -> None:
    words = ("$(A)", "x$(A)y", "$$(A)", "$(B)", "$A", "$$")
    assert expand(words, {"A": "1"}, field="command") == ("1", "x1y", "$(A)", "$(B)", "$A", "$")


def test_words_of_the_longest_length_pass_and_one_byte_more_does_not() -> None:
    most = "é" * ((STRING_BYTES - 1) // 2)
    (word,) = expand(("x$(A)",), {"A": most}, field="args")
    assert len(word.encode()) + 1 == STRING_BYTES
    with pytest.raises(
        EngineRefused, match=rf"args\[1\].* {STRING_BYTES + 1} bytes.* {STRING_BYTES} at most"
    ) as caught:
        expand(("", "xx$(A)"), {"A": most}, field="args")
    assert (caught.value.reason, caught.value.user_error) == (Reason.INVALID_SPEC, True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("$(A)" * 8192,), r"command\[0\]"),
        (("$(A)",) * 8192, r"command up to command\[16\]"),
        (("$(A$(A$(" * 4096 + "$(A)" * 8192,), r"command\[0\]"),
        (("$$(A)" * 8192 + "$(A)$(A)",), r"command\[0\]"),
    ],
    ids=["one word", "many words", "nested", "escaped"],
)
def test_a_few_bytes_that_stand_for_a_gib_take_no_memory(words: tuple[str, ...], named: str) -> None:
    value = "v" * (STRING_BYTES - 10)
    tracemalloc.start()
    try:
        with pytest.raises(EngineRefused, match=named):
            expand(words, {"A": value}, field="command")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_variable_longer_than_any_program_may_have_is_refused() -> None:
    fits = "v" * (STRING_BYTES - len("A=\0"))
    assert environment(image_env=(), given=(("A", fits),), hostname="h", timezone="")[-1] == f"A={fits}"
    with pytest.raises(EngineRefused, match=f"variable 'A' takes {STRING_BYTES + 1} bytes") as caught:
        environment(image_env=(f"A=v{fits}",), given=(), hostname="h", timezone="")
    assert (caught.value.reason, caught.value.user_error) == (Reason.INVALID_SPEC, True)


def test_what_is_too_much_together_is_refused() -> None:
    long = "v" * 100_000
    env = ResolvedEnv(tuple((f"V{n}", long) for n in range(11)))
    words = replace(PLAN, env=env, spec=RuntimeSpec(image="i", args=("$(V0)",) * 9))
    spec(words)
    with pytest.raises(
        EngineRefused, match=rf"line takes 1000\d\d\d .*environment.* 1100\d\d\d, .*{TOTAL_BYTES}"
    ) as caught:
        spec(replace(words, spec=RuntimeSpec(image="i", args=("$(V0)",) * 10)))
    assert (caught.value.reason, caught.value.user_error) == (Reason.INVALID_SPEC, True)


def test_words_of_the_image_count_as_well() -> None:
    image = replace(IMAGE, cmd=("x" * STRING_BYTES,))
    with pytest.raises(EngineRefused, match="word 1 of the command line"):
        spec(replace(PLAN, image=image))


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(EngineRefused, match="command"):
        argument_vector(entrypoint=(), cmd=(), command=(), args=())


def test_later_variables_win() -> None:
    made = environment(
        image_env=("PATH=/image", "A=1", "=x", "B=x=y"), given=(("A", "2"), ("TZ", "UTC")), hostname="h", timezone="Z"
    )
    assert made == ("PATH=/image", "HOSTNAME=h", "TZ=UTC", "A=2", "B=x=y")


@pytest.mark.parametrize(("name", "value"), [("A", "\0"), ("A\0", "x"), ("A=B", "x"), ("", "x")])
def test_variables_that_the_kernel_cannot_take_are_refused(name: str, value: str) -> None:
    with pytest.raises(EngineRefused, match="env"):
        environment(image_env=(), given=((name, value),), hostname="h", timezone="")


def test_the_working_directory_is_absolute() -> None:
    assert working_directory(None, "") == "/"
    assert working_directory(None, "srv") == "/srv"
    assert working_directory("/a", "/b") == "/a"
    with pytest.raises(EngineRefused, match="workingDir"):
        working_directory("a", "/b")


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ("", (0, 0, (0, 10))),
        ("app", (1000, 1001, (10, 50, 1001))),
        ("1000", (1000, 1001, (10, 50, 1001))),
        ("app:wheel", (1000, 10, (10,))),
        ("app:7", (1000, 7, (7,))),
        ("4711", (4711, 0, (0,))),
        ("4711:4712", (4711, 4712, (4712,))),
        (":50", (0, 50, (50,))),
    ],
)
def test_users_are_found_as_docker_finds_them(wanted: str, ids: tuple[int, int, tuple[int, ...]]) -> None:
    user = resolve_user(wanted, passwd=PASSWD, group=GROUP)
    assert (user.uid, user.gid, user.additional_gids) == ids


@pytest.mark.parametrize("wanted", ["nobody", "app:nobody", "-1", "99999999999"])
def test_an_unknown_user_is_the_users_to_mend(wanted: str) -> None:
    with pytest.raises(EngineRefused, match="not in the image") as caught:
        resolve_user(wanted, passwd=PASSWD, group=GROUP)
    assert (caught.value.reason, caught.value.user_error) == (Reason.USER_NOT_FOUND, True)


def test_numbers_need_no_account_files() -> None:
    assert resolve_user("5:6", passwd=b"", group=b"").uid == 5


def test_limits_are_in_the_kernels_units() -> None:
    resources = Resources(
        requests=ResourceRequests(cpu="250m"), limits=ResourceLimits(cpu="1500m", memory="64Mi", pids=9)
    )
    made = cgroup_limits(resources, swap_accounting=True)
    assert (made.memory.limit, made.memory.swap) == (64 << 20, 64 << 20)
    assert (made.cpu.quota, made.cpu.period, made.cpu.shares) == (150_000, 100_000, 256)
    assert made.pids.limit == 9
    assert cgroup_limits(resources, swap_accounting=False).memory.swap is None


def test_tiny_limits_are_the_smallest_that_the_kernel_takes() -> None:
    made = cgroup_limits(
        Resources(requests=ResourceRequests(cpu="1m"), limits=ResourceLimits(cpu="1m")), swap_accounting=True
    )
    assert (made.cpu.quota, made.cpu.shares) == (1_000, 2)


def test_a_bad_quantity_is_the_users_to_mend() -> None:
    with pytest.raises(EngineRefused, match="many") as caught:
        cgroup_limits(Resources(limits=ResourceLimits(memory="many")), swap_accounting=True)
    assert caught.value.user_error


def allowed(machine: str, capabilities: frozenset[str]) -> set[str]:
    profile = default_profile(machine, capabilities)
    return {
        name for rule in profile.syscalls if rule.action == "SCMP_ACT_ALLOW" and not rule.args for name in rule.names
    }


def test_dangerous_calls_are_not_allowed() -> None:
    dangerous = {
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "kexec_load",
        "init_module",
        "reboot",
    }
    dangerous |= {"open_by_handle_at", "userfaultfd", "perf_event_open", "swapon", "settimeofday", "ioperm", "clone"}
    dangerous |= {"io_uring_setup", "move_mount", "fsopen", "pivot_root", "clock_settime", "socket", "personality"}
    for machine in ("x86_64", "aarch64", "s390x"):
        assert not allowed(machine, frozenset(BASELINE_CAPABILITIES)) & dangerous


def test_what_a_capability_allows_goes_with_it() -> None:
    assert "chroot" in allowed("x86_64", frozenset({"CAP_SYS_CHROOT"}))
    assert "chroot" not in allowed("x86_64", frozenset())


def test_machines_have_their_own_calls_and_argument_places() -> None:
    assert "arch_prctl" in allowed("x86_64", frozenset())
    assert "arch_prctl" not in allowed("aarch64", frozenset())
    places = {
        machine: [
            rule.args[0].index for rule in default_profile(machine, frozenset()).syscalls if rule.names == ("clone",)
        ]
        for machine in ("x86_64", "s390x")
    }
    assert places == {"x86_64": [0], "s390x": [1]}


def test_clone3_is_said_not_to_exist() -> None:
    (rule,) = (rule for rule in default_profile("x86_64", frozenset()).syscalls if rule.names == ("clone3",))
    assert (rule.action, rule.errno_ret) == ("SCMP_ACT_ERRNO", 38)


def test_sockets_of_the_vm_and_crypto_families_match_no_rule() -> None:
    compare = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    rules = [rule for rule in default_profile("x86_64", frozenset()).syscalls if rule.names == ("socket",)]

    def passes(family: int) -> bool:
        return any(compare[rule.args[0].op](family, rule.args[0].value) for rule in rules)

    assert [family for family in range(1, 46) if not passes(family)] == [38, 40]


def test_a_node_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/localtime").symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "run/systemd/resolve").mkdir(parents=True)
    (tmp_path / "run/systemd/resolve/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").touch()
    (tmp_path / "sys/kernel/security/apparmor").mkdir(parents=True)
    (tmp_path / "sys/kernel/security/apparmor/profiles").write_text("man (enforce)\ndocker-default (enforce)\n")
    found = detect(tmp_path)
    assert (found.cgroup2, found.swap_accounting, found.timezone) == (True, True, "Asia/Tokyo")
    assert found.apparmor_profile == "docker-default"
    assert found.resolv_conf == tmp_path / "run/systemd/resolve/resolv.conf"


def test_a_bare_node_is_no_error(tmp_path: Path) -> None:
    found = detect(tmp_path)
    assert (found.cgroup2, found.apparmor_profile, found.timezone) == (False, "", "")
