"""Finds etcd and Kubernetes' own programs, or builds them from the Go modules in ``hack/kube``; CNI plugins of the newest
release from that in ``hack/cni``.

Looked for in ``KUBEBUILDER_ASSETS``, on ``PATH``, in the cache (one folder per version), and only then built: once per
user and version, whichever clone comes first. go.sum pins every byte that goes in. Called by ``rig.environment``, by
``rig.testrun`` for plugins, and by ``rig.bench`` for what only a comparison needs.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import go
from rig.packages import ensure_certificates
from rig.paths import CHECKOUT, cache_home
from rig.progress import run, say, ticking

MODULES = CHECKOUT / "hack" / "kube"
CNI_MODULE = CHECKOUT / "hack" / "cni"
BUILD_SECONDS = 3600.0
DISK_GIGABYTES = 4.0


@dataclass(frozen=True, slots=True)
class Program:
    """One Go command: its file name, the folder whose go.mod pins it, and the module that its version is taken from."""

    name: str
    package: str
    module_directory: Path
    module: str
    cache_prefix: str
    of_the_machine: bool = True
    """Whether one that is installed may be taken instead of exactly this version."""

    @property
    def version(self) -> str:
        """Version of ``module`` that go.mod requires, like ``v1.36.3``. Raises ValueError where it names none."""
        text = (self.module_directory / "go.mod").read_text()
        found = re.search(rf"^(?:require)?\s*{re.escape(self.module)} (v\S+)", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"{self.module_directory / 'go.mod'} does not require {self.module}")
        return found[1]

    @property
    def cached(self) -> Path:
        """Where the cache keeps it."""
        return cache_home() / f"{self.cache_prefix}-{self.version}" / self.name

    def linker_flags(self) -> str:
        """Strips symbols, and tells Kubernetes commands which version they are."""
        if self.cache_prefix != "kube":
            return "-s -w"
        major, minor, _ = self.version.removeprefix("v").split(".", 2)
        base = "k8s.io/component-base/version"
        return f"-s -w -X {base}.gitVersion={self.version} -X {base}.gitMajor={major} -X {base}.gitMinor={minor}"


def _kubernetes(name: str) -> Program:
    return Program(name, f"k8s.io/kubernetes/cmd/{name}", MODULES, "k8s.io/kubernetes", "kube")


PROGRAMS = (
    Program("etcd", "go.etcd.io/etcd/server/v3", MODULES / "etcd", "go.etcd.io/etcd/server/v3", "etcd"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
)
"""What every environment runs."""
POD_PROGRAMS = (_kubernetes("kubelet"), _kubernetes("kube-scheduler"))
"""What runs Pods besides."""


def _plugin(package: str) -> Program:
    plugins = "github.com/containernetworking/plugins"
    name = package.rpartition("/")[2]
    return Program(name, f"{plugins}/plugins/{package}", CNI_MODULE, plugins, "cni-plugins", of_the_machine=False)


CNI_PLUGINS = tuple(
    map(
        _plugin,
        (
            "ipam/host-local",
            "main/bridge",
            "main/loopback",
            "main/macvlan",
            "main/ptp",
            "meta/bandwidth",
            "meta/firewall",
            "meta/portmap",
        ),
    )
)
"""The reference plugins that the tests hold the CNI client against besides those that the distribution has."""


def ensure(programs: Sequence[Program] = PROGRAMS) -> dict[str, Path]:
    """Their paths by name, built where they are nowhere to be found. Raises CommandError or RuntimeError."""
    found = {program.name: find(program) for program in programs}
    missing = [program for program in programs if found[program.name] is None]
    if missing:
        with _build_lock():
            for program in missing:
                if not program.cached.exists():
                    _announce(missing)
                    break
            for program in missing:
                if not program.cached.exists():
                    _build(program)
    return {program.name: found[program.name] or program.cached for program in programs}


def find(program: Program) -> Path | None:
    """An executable that is there already, or None."""
    if not program.of_the_machine:
        return program.cached if program.cached.exists() else None
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets) / program.name, os.X_OK):
        return Path(assets) / program.name
    on_path = shutil.which(program.name)
    if on_path is not None:
        return Path(on_path)
    return program.cached if program.cached.exists() else None


def _announce(missing: list[Program]) -> None:
    names = ", ".join(program.name for program in missing)
    say(
        f"==> {names}: not found on this machine nor in {cache_home()}; building from Go modules.\n"
        f"    Once per version: up to 6 minutes on 2 cores, {DISK_GIGABYTES:.0f} GB of disk for Go's caches, "
        "at most 0.1 GB kept of each program."
    )
    home = cache_home()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / 1e9
    if free < DISK_GIGABYTES:
        raise RuntimeError(
            f"only {free:.1f} GB are free on the disk of {home}; free {DISK_GIGABYTES:.0f} GB, "
            "or point XDG_CACHE_HOME, GOCACHE and GOMODCACHE at another disk"
        )


def _build(program: Program) -> None:
    ensure_certificates()
    command = go.ensure(program.module_directory / "go.mod")
    target = program.cached
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{program.name}.{os.getpid()}")
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    try:
        with ticking(f"downloading Go modules for {program.name} {program.version}"):
            run([command, "mod", "download"], timeout=BUILD_SECONDS, env=env, cwd=program.module_directory)
        with ticking(f"building {program.name} {program.version}"):
            # fmt: off
            run([command, "build", "-trimpath", "-ldflags", program.linker_flags(), "-o", temporary, program.package],
                timeout=BUILD_SECONDS, env=env, cwd=program.module_directory)
            # fmt: on
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _build_lock() -> Iterator[None]:
    """One build at a time per user; the next one finds the programs ready."""
    cache_home().mkdir(parents=True, exist_ok=True)
    with (cache_home() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with ticking("waiting for another clone that builds the same programs"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
