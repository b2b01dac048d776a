"""The part of the OCI runtime spec that is written here, as typed structs that encode to its JSON."""

from __future__ import annotations

import msgspec

VERSION = "1.0.2"


class Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: camelCase on the wire, unset fields left out."""


class User(Shape, frozen=True, kw_only=True):
    uid: int = msgspec.field(name="uid")
    gid: int = msgspec.field(name="gid")
    additional_gids: tuple[int, ...] = ()


class Capabilities(Shape, frozen=True, kw_only=True):
    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()


class Process(Shape, frozen=True, kw_only=True):
    user: User
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    capabilities: Capabilities
    no_new_privileges: bool
    apparmor_profile: str = ""


class Root(Shape, frozen=True, kw_only=True):
    path: str


class Mount(Shape, frozen=True, kw_only=True):
    destination: str
    type: str
    source: str
    options: tuple[str, ...]


class DeviceRule(msgspec.Struct, frozen=True, kw_only=True):
    """`allow` false is written out: leaving it out would be a default of the runtime's choosing."""

    allow: bool
    access: str


class Memory(Shape, frozen=True, kw_only=True):
    limit: int
    """Bytes."""
    swap: int | None = None
    """Memory and swap together, bytes; equal to `limit` = no swap."""


class Cpu(Shape, frozen=True, kw_only=True):
    shares: int
    """cgroup v1's unit; runc converts it to a weight on v2."""
    quota: int
    """Microseconds per period."""
    period: int


class Pids(Shape, frozen=True, kw_only=True):
    limit: int


class Resources(Shape, frozen=True, kw_only=True):
    devices: tuple[DeviceRule, ...]
    memory: Memory
    cpu: Cpu
    pids: Pids


class Namespace(Shape, frozen=True, kw_only=True):
    type: str
    path: str = ""


class SeccompArgument(Shape, frozen=True, kw_only=True):
    index: int = msgspec.field(name="index")
    value: int = msgspec.field(name="value")
    op: str


class SeccompRule(Shape, frozen=True, kw_only=True):
    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArgument, ...] = ()


class Seccomp(Shape, frozen=True, kw_only=True):
    default_action: str
    architectures: tuple[str, ...]
    syscalls: tuple[SeccompRule, ...]


class Linux(Shape, frozen=True, kw_only=True):
    resources: Resources
    cgroups_path: str
    namespaces: tuple[Namespace, ...]
    seccomp: Seccomp
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]


class Spec(Shape, frozen=True, kw_only=True):
    oci_version: str
    process: Process
    root: Root
    hostname: str
    mounts: tuple[Mount, ...]
    linux: Linux


def encode(spec: Spec) -> bytes:
    """The spec as JSON."""
    return msgspec.json.encode(spec)
