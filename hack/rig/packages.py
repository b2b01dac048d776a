"""The Debian packages that an environment needs: which are missing, and their installation where we are root.

Called by ``rig.environment`` before anything is started. A service that a package would start (containerd's own unit,
say) is kept from starting: the environment runs its own, beside whatever the machine runs.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.paths import system_path
from rig.progress import run, ticking

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Written by Perdure's hack/env for the time of one installation.\nexit 101\n"
INSTALL_SECONDS = 1200.0


class MissingPackagesError(RuntimeError):
    """Debian packages are missing and we may not, or cannot, install them; the message has the command to run."""


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package and what shows that it is there: a command on PATH, or a file."""

    name: str
    proof: str

    def is_present(self) -> bool:
        """True if the proof is found."""
        if self.proof.startswith("/"):
            return Path(self.proof).exists()
        return shutil.which(self.proof, path=system_path(os.environ.get("PATH", "/usr/bin:/bin"))) is not None


REQUIRED = (
    Package("containerd", "containerd"),
    Package("runc", "runc"),
    Package("containernetworking-plugins", "/usr/lib/cni/bridge"),
    Package("iptables", "iptables"),
    Package("nftables", "nft"),
    Package("iproute2", "ip"),
    Package("zstd", "zstd"),
    Package("tar", "tar"),
    Package("busybox-static", "/usr/share/doc/busybox-static"),
    Package("bubblewrap", "bwrap"),
    Package("openssl", "openssl"),
    Package("util-linux", "setpriv"),
)
CERTIFICATES = Package("ca-certificates", "/etc/ssl/certs/ca-certificates.crt")


def ensure() -> None:
    """Install what is missing of REQUIRED. Raises MissingPackagesError or CommandError."""
    _install([package.name for package in REQUIRED if not package.is_present()])


def ensure_certificates() -> None:
    """Install the certificate authorities that downloads of Go modules are checked against."""
    if not CERTIFICATES.is_present():
        _install([CERTIFICATES.name])


def _install(names: list[str]) -> None:
    if not names:
        return
    command = f"apt-get install --no-install-recommends {' '.join(names)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingPackagesError(f"these Debian packages are missing; as root, run: {command}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", "DPkg::Lock::Timeout=300", "-qq", "-y"]
    with ticking(f"installing Debian packages: {' '.join(names)}"), _no_service_starts():
        run(["apt-get", *options, "update"], timeout=INSTALL_SECONDS, env=env)
        run(
            ["apt-get", *options, "install", "--no-install-recommends", *names],
            timeout=INSTALL_SECONDS,
            env=env,
        )


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Deny service starts to package scripts (invoke-rc.d(8), policy-rc.d) unless the machine has a policy already."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
