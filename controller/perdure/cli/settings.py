"""What a process was told on its command line, checked: the composition roots get one of these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.api.names import NodeName
from perdure.plan.allotment import PortRange
from perdure.telemetry.health import Address
from perdure.telemetry.logs import LogFormat, LogLevel


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where the ledger is, with a password in it: shown by nothing but `reveal`."""

    _url: str

    def reveal(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return "DatabaseUrl(***)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """What all processes have."""

    kubeconfig: Path | None
    """None: ~/.kube/config, else the cluster that this runs in. May be a list of paths, as KUBECONFIG may."""
    http_address: Address
    resync_seconds: float
    log_level: LogLevel
    log_format: LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What belongs to one node."""

    name: NodeName
    containerd_address: Path
    engine_namespace: str
    runc_root: Path | None
    """None: as the engine is configured."""
    cgroup_parent: str
    state_dir: Path
    run_dir: Path
    archive_dir: Path
    cni_conf_dir: Path
    cni_network: str | None
    """None: the first configuration of the folder."""
    cni_bin_dirs: tuple[Path, ...]
    allocatable_millicores: int
    allocatable_bytes: int
    max_concurrent_starts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    common: CommonSettings
    database_url: DatabaseUrl
    port_range: PortRange
    """What Dynamic ports are drawn from, on each node."""
    history_days: int
    """For how long operations are kept in the ledger at least; they are dropped by whole months."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    common: CommonSettings
    database_url: DatabaseUrl
    node: NodeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StandaloneSettings:
    common: CommonSettings
    database_url: DatabaseUrl | None
    """None: an embedded PostgreSQL in the state folder."""
    node: NodeSettings
    port_range: PortRange
    history_days: int
