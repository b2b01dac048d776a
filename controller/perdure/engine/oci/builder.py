"""The whole spec of one container, from a plan and what was looked up for it. Pure; called by engines.

Nothing beyond Pod Security `baseline` can come out of it: no privilege, device, host path or host namespace has a way
in. Sources: kubernetes.io "Pod Security Standards"; containerd pkg/oci/spec.go for the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.api.conditions import Reason
from perdure.engine.oci import schema
from perdure.engine.oci.limits import cgroup_limits
from perdure.engine.oci.node import NodeFeatures
from perdure.engine.oci.process import argument_vector, check_together, environment, expand, working_directory
from perdure.engine.oci.schema import Mount
from perdure.engine.oci.seccomp import default_profile
from perdure.reconcile.ports.engine import ContainerPlan
from perdure.reconcile.ports.errors import EngineRefused

BASELINE_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""containerd's defaults without CAP_NET_RAW, which is not on the list of Pod Security `baseline`."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_SYSTEM_MOUNTS = (
    Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
    Mount(
        destination="/dev",
        type="tmpfs",
        source="tmpfs",
        options=("nosuid", "strictatime", "mode=755", "size=65536k"),
    ),
    Mount(
        destination="/dev/pts",
        type="devpts",
        source="devpts",
        options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    Mount(
        destination="/dev/shm",
        type="tmpfs",
        source="shm",
        options=("nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    ),
    Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=("nosuid", "noexec", "nodev")),
    Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev", "ro")),
)
"""As containerd's defaults but without a tmpfs on /run: images (PostgreSQL's, say) carry folders there that they need,
and all that a container writes is to last."""

_CGROUP_MOUNT = Mount(
    destination="/sys/fs/cgroup",
    type="cgroup",
    source="cgroup",
    options=("nosuid", "noexec", "nodev", "relatime", "ro"),
)


@dataclass(frozen=True, slots=True)
class MountedFiles:
    """Files of ours that a container sees at their usual places."""

    resolv_conf: Path
    hosts: Path
    hostname: Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a spec needs besides the plan."""

    user: schema.User
    files: MountedFiles
    cgroup_parent: str
    node: NodeFeatures


def build_spec(plan: ContainerPlan, around: Surroundings) -> schema.Spec:
    """The spec. Raises `EngineRefused` (InvalidSpec, PodSecurityViolation) with a message for the user."""
    if plan.restricted and around.user.uid == 0:
        raise EngineRefused(
            "cannot make the container: its user is root (uid 0), which Pod Security `restricted` of the namespace "
            "forbids; set `user` to another one",
            reason=Reason.POD_SECURITY,
            user_error=True,
        )
    capabilities = () if plan.restricted else BASELINE_CAPABILITIES
    hostname = plan.ref.name
    given = dict(plan.env.values)
    args = argument_vector(
        entrypoint=plan.image.entrypoint,
        cmd=plan.image.cmd,
        command=expand(plan.spec.command, given, field="command"),
        args=expand(plan.spec.args, given, field="args"),
    )
    env = environment(image_env=plan.image.env, given=plan.env.values, hostname=hostname, timezone=around.node.timezone)
    check_together(args, env)
    return schema.Spec(
        oci_version=schema.VERSION,
        process=schema.Process(
            user=around.user,
            args=args,
            env=env,
            cwd=working_directory(plan.spec.working_dir, plan.image.working_dir),
            capabilities=schema.Capabilities(bounding=capabilities, effective=capabilities, permitted=capabilities),
            no_new_privileges=True,
            apparmor_profile=around.node.apparmor_profile,
        ),
        root=schema.Root(path="rootfs"),
        hostname=hostname,
        mounts=_mounts(around),
        linux=schema.Linux(
            resources=cgroup_limits(plan.spec.resources, swap_accounting=around.node.swap_accounting),
            cgroups_path=f"{around.cgroup_parent.rstrip('/')}/{plan.id}",
            namespaces=_namespaces(plan.netns, around.node),
            seccomp=default_profile(around.node.machine, frozenset(capabilities)),
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
        ),
    )


def _mounts(around: Surroundings) -> tuple[Mount, ...]:
    files = (
        ("/etc/resolv.conf", around.files.resolv_conf),
        ("/etc/hosts", around.files.hosts),
        ("/etc/hostname", around.files.hostname),
    )
    options = ("rbind", "rprivate", "ro", "nosuid", "nodev", "noexec")
    ours = tuple(Mount(destination=at, type="bind", source=str(source), options=options) for at, source in files)
    # Version 1 has no cgroup namespace worth the name: a mount would show the whole node's tree.
    cgroup = (_CGROUP_MOUNT,) if around.node.cgroup2 else ()
    return (*_SYSTEM_MOUNTS, *cgroup, *ours)


def _namespaces(netns: str, node: NodeFeatures) -> tuple[schema.Namespace, ...]:
    own = ("pid", "ipc", "uts", "mount", "cgroup") if node.cgroup2 else ("pid", "ipc", "uts", "mount")
    return (*(schema.Namespace(type=name) for name in own), schema.Namespace(type="network", path=netns))
