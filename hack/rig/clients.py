"""Clients of an environment for tests, the demo and the benchmarks: addresses, ``kubectl`` and ``ctr``.

They speak through the commands that people use, so that what is seen is what a user sees.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.environment import ENGINE_NAMESPACE
from rig.progress import CommandError, run

COMMAND_SECONDS = 120.0
API_GROUP = "perdure.dev"


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of a running environment, as ``hack/env up`` exports them."""

    kubeconfig: Path
    containerd_address: Path
    database_url: str
    state_directory: Path
    runc_root: Path
    cgroup_parent: str
    engine_namespace: str = ENGINE_NAMESPACE

    @classmethod
    def from_variables(cls, variables: Mapping[str, str] = os.environ) -> "Services":
        """Read them from the environment. Raises KeyError with the name of a variable that is not set."""
        return cls(
            kubeconfig=Path(variables["KUBECONFIG"]),
            containerd_address=Path(variables["PERDURE_CONTAINERD_ADDRESS"]),
            database_url=variables["PERDURE_DATABASE_URL"],
            state_directory=Path(variables["PERDURE_STATE_DIR"]),
            runc_root=Path(variables["PERDURE_RUNC_ROOT"]),
            cgroup_parent=variables["PERDURE_CGROUP_PARENT"],
        )


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs ``kubectl`` against one API server, in one namespace or in none."""

    kubeconfig: Path
    namespace: str | None = None

    def __call__(self, *arguments: str, stdin: str = "", timeout: float = COMMAND_SECONDS) -> str:
        """Run one command and return its stdout. Raises CommandError with kubectl's own words."""
        return run([*self._prefix(), *arguments], timeout=timeout, stdin=stdin)

    def attempt(
        self, *arguments: str, stdin: str = "", timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run one command that may fail; its exit code, stdout and stderr are the caller's to judge."""
        return subprocess.run(
            [*self._prefix(), *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )

    def apply(self, *manifests: Mapping[str, Any]) -> str:
        """``kubectl apply`` objects given as dictionaries."""
        return self("apply", "-f", "-", stdin="\n---\n".join(json.dumps(manifest) for manifest in manifests))

    def get(self, *arguments: str) -> Any:
        """The parsed JSON of ``kubectl get``."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def delete_objects(self) -> None:
        """Delete every Perdure object of the namespace, finalizers or not: no controller need be there to release it.

        Raises CommandError if one cannot be deleted.
        """
        verbs = "--verbs=list,patch,delete"
        for resource in self("api-resources", f"--api-group={API_GROUP}", "--namespaced", verbs, "-o", "name").split():
            self("delete", resource, "--all", "--wait=false")
            for item in self.get(resource)["items"]:
                name = item["metadata"]["name"]
                patch = '{"metadata":{"finalizers":null}}'
                outcome = self.attempt("patch", resource, name, "--type=merge", "-p", patch)
                if outcome.returncode != 0 and "NotFound" not in outcome.stderr:
                    raise CommandError(f"finalizers of {resource}/{name} stay: {outcome.stderr.strip()}")

    def _prefix(self) -> list[str]:
        scope = [f"--namespace={self.namespace}"] if self.namespace else []
        return ["kubectl", f"--kubeconfig={self.kubeconfig}", *scope]


@dataclass(frozen=True, slots=True)
class Ctr:
    """Runs ``ctr`` against one engine, in one containerd namespace."""

    address: Path
    namespace: str

    def __call__(self, *arguments: str | Path, timeout: float = COMMAND_SECONDS) -> str:
        """Run one command and return its stdout. Raises CommandError with ctr's own words."""
        command = ["ctr", "--address", str(self.address), "--namespace", self.namespace]
        return run([*command, *arguments], timeout=timeout)

    def names(self, *arguments: str) -> list[str]:
        """The first column of a listing command's rows, headings left out."""
        return [row.split()[0] for row in self(*arguments).splitlines()[1:] if row.strip()]

    def import_image(self, archive: Path) -> None:
        """Make the images of an OCI archive known, and unpacked, in this namespace."""
        self("images", "import", "--snapshotter", "overlayfs", archive)

    def remove_namespace(self) -> None:
        """Remove everything from the namespace, running containers first, and the namespace itself.

        Raises CommandError if something cannot be removed.
        """
        for task in self.names("tasks", "ls"):
            self("tasks", "delete", "--force", task)
        for container in self.names("containers", "ls"):
            self("containers", "delete", container)
        for lease in self.names("leases", "ls"):
            self("leases", "delete", lease)
        self._remove_snapshots()
        images = self("images", "ls", "-q").split()
        if images:
            self("images", "rm", "--sync", *images)
        for blob in self.names("content", "ls"):
            self("content", "rm", blob)
        self("namespaces", "rm", self.namespace)

    def _remove_snapshots(self) -> None:
        """Children go first; which ones have children is not in the listing's order, so leaves are found by parent."""
        listing = ("snapshots", "--snapshotter", "overlayfs")
        while rows := self(*listing, "ls").splitlines()[1:]:
            columns = [row.split() for row in rows if row.strip()]
            parents = {row[1] for row in columns if len(row) == 3}
            leaves = [row[0] for row in columns if row[0] not in parents]
            self(*listing, "rm", *leaves)
