"""One runtime as its user has it: made, changed and deleted with kubectl, its files and its main process looked at.

Called by the e2e tests and by `hack/chaos`.
"""

import base64
import json
import os
import signal
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.harness.api import GROUP, Api, Json
from tests.e2e.harness.site import Site
from tests.e2e.harness.waiting import WAIT_SECONDS, eventually

from perdure.api.names import ARCHIVE_PLURAL, Kind
from rig.clients import Kubectl
from rig.filetree import Tree, tree_of
from rig.processes import ProcessIdentity

IMAGE = "perdure.dev/samples/busybox:1"
SMALL: Json = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}


@dataclass(slots=True)
class Runtime:
    """A name in a namespace, and the newest life under it that was seen."""

    kubectl: Kubectl
    api: Api
    site: Site
    name: str
    kind: Kind = Kind.BOT
    spec: Json = field(default_factory=dict)
    uid: str = ""

    # ------------------------------------------------------------------------------------------ what a user does

    def apply(self, **spec: Any) -> "Runtime":
        """`kubectl apply`; fields that are given are remembered for the next time."""
        self.spec |= spec
        self.kubectl.apply(self.manifest())
        found = self.read()
        assert found is not None
        self.uid = found["metadata"]["uid"]
        return self

    def manifest(self) -> Json:
        return {
            "apiVersion": "perdure.dev/v1alpha1",
            "kind": self.kind.value,
            "metadata": {"name": self.name},
            "spec": {"image": IMAGE, "resources": SMALL, "stop": {"gracePeriodSeconds": 2}, **self.spec},
        }

    def patch(self, **spec: Any) -> None:
        """`kubectl patch` of the spec."""
        self.spec |= spec
        self.kubectl("patch", self.resource, self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def annotate(self, **annotations: str) -> None:
        pairs = [f"perdure.dev/{key.replace('_', '-')}={value}" for key, value in annotations.items()]
        self.kubectl("annotate", self.resource, self.name, "--overwrite", *pairs)

    def delete(self) -> None:
        """`kubectl delete` without waiting for its end."""
        self.kubectl("delete", self.resource, self.name, "--wait=false")

    def delete_and_wait(self, seconds: float = WAIT_SECONDS) -> None:
        self.delete()
        self.wait_gone(seconds)

    # ------------------------------------------------------------------------------------------ what a user sees

    @property
    def resource(self) -> str:
        return self.kind.plural

    @property
    def container_id(self) -> str:
        assert self.uid, f"{self.name} was not applied yet"
        return f"{self.kind.short}-{self.uid}"

    def read(self) -> Json | None:
        return self.api.get(f"{GROUP}/namespaces/{self.kubectl.namespace}/{self.resource}/{self.name}")

    def status(self) -> Json:
        """Its status; empty where it has none, or is not there."""
        found = self.read()
        status: Json = (found or {}).get("status", {})
        return status

    def condition(self, type_: str) -> Json:
        """One condition; empty while it is not set."""
        conditions: list[Json] = self.status().get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == type_), {})

    def wait_phase(self, phase: str, seconds: float = WAIT_SECONDS) -> Json:
        """Wait until the status shows this phase for the newest spec; returns the status."""

        def look() -> Json:
            found = self.read() or {}
            status: Json = {"generation": found.get("metadata", {}).get("generation"), **found.get("status", {})}
            return status

        def holds(status: Json) -> bool:
            return status.get("phase") == phase and status.get("observedGeneration") == status["generation"]

        return eventually(look, f"{self.name} is {phase}", holds, seconds)

    def wait_ready(self, seconds: float = WAIT_SECONDS) -> "Runtime":
        """As `kubectl wait --for=condition=Ready` does, and the phase must agree."""
        self.wait_condition("Ready", "True", "Running", seconds=seconds)
        assert self.status()["phase"] == "Running"
        return self

    def wait_condition(self, type_: str, status: str, reason: str | None = None, seconds: float = WAIT_SECONDS) -> Json:
        """Wait until a condition has this status (and reason); returns the condition."""

        def look() -> tuple[Json, Json]:
            return self.condition(type_), self.status()

        def holds(seen: tuple[Json, Json]) -> bool:
            return seen[0].get("status") == status and (reason is None or seen[0].get("reason") == reason)

        return eventually(look, f"{self.name} has {type_}={status} ({reason or 'any reason'})", holds, seconds)[0]

    def wait_gone(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the object of this life is not there any more."""

        def look() -> Json | None:
            found = self.read()
            return found if found is not None and found["metadata"]["uid"] == self.uid else None

        eventually(look, f"{self.name} ({self.uid}) is gone", lambda found: found is None, seconds)

    def wait_nothing_left(self) -> None:
        """Wait until nothing on the node bears the uid of this life: its logs go last, when its object is gone."""
        eventually(
            lambda: self.site.things_of(self.uid),
            f"nothing of {self.name} ({self.uid}) is left",
            lambda left: left == [],
        )

    def archives(self) -> list[Json]:
        """RuntimeArchives of this name that say what they are, the oldest first."""
        found = self.api.items(f"{GROUP}/namespaces/{self.kubectl.namespace}/{ARCHIVE_PLURAL}")
        own = [
            item
            for item in found
            if item["spec"]["source"]["name"] == self.name
            and item["spec"]["source"]["kind"] == self.kind.value
            and "status" in item
        ]
        return sorted(own, key=lambda item: int(item["status"]["sequence"]))

    # ------------------------------------------------------------------------------------------ inside the container

    def pid(self) -> int | None:
        """The main process as the engine has it; None where no task runs."""
        for row in self.site.ctr("tasks", "ls").splitlines()[1:]:
            columns = row.split()
            if columns and columns[0] == self.container_id and columns[2] == "RUNNING":
                return int(columns[1])
        return None

    def process(self) -> ProcessIdentity:
        """The main process, told apart from every other that ever has its pid."""
        pid = self.pid()
        assert pid is not None, f"{self.name} has no running task"
        found = ProcessIdentity.of(pid)
        assert found is not None, f"the main process {pid} of {self.name} is not there"
        return found

    def wait_other_process(self, than: ProcessIdentity, seconds: float = WAIT_SECONDS) -> ProcessIdentity:
        """Wait for a main process that is not this one."""

        def look() -> ProcessIdentity | None:
            pid = self.pid()
            return ProcessIdentity.of(pid) if pid is not None else None

        found = eventually(
            look, f"{self.name} has another main process", lambda seen: seen not in (None, than), seconds
        )
        assert found is not None
        return found

    def kill_main_process(self) -> ProcessIdentity:
        """`kill -9` of the main process; returns which one it was."""
        process = self.process()
        process.send(signal.SIGKILL)
        return process

    def run(self, script: str) -> str:
        """Run a shell script in the container as `kubectl exec` would; returns its output.

        The output goes through a file in the container's /dev/shm, which is not of its layer: under load `ctr` may end
        before it has read what a quick process wrote.
        """
        exec_id = f"e2e-{uuid.uuid4().hex[:12]}"
        output = f"/dev/shm/{exec_id}"
        wrapped = f"exec > {output}\n{script}"
        self.site.ctr("tasks", "exec", "--exec-id", exec_id, self.container_id, "/bin/sh", "-euc", wrapped, timeout=60)
        seen = Path(f"/proc/{self.process().pid}/root{output}")
        text = seen.read_text()
        seen.unlink()
        return text

    def tree(self) -> Tree:
        """Every file of the running container, with content and metadata."""
        pid = self.pid()
        assert pid is not None, f"{self.name} has no running task"
        return tree_of(pid)

    def environment(self) -> dict[str, str]:
        """The variables of the main process."""
        with open(f"/proc/{self.process().pid}/environ", "rb") as file:
            pairs = (part.partition(b"=") for part in file.read().split(b"\0") if part)
            return {name.decode(): value.decode() for name, _, value in pairs}

    # ------------------------------------------------------------------------------------------ files worth keeping

    def fill(self, megabytes: int = 2) -> None:
        """Files of every kind that a container can write: some written in it, the odd ones from outside into it."""
        self.run(FILL_SCRIPT.replace("@MEGABYTES@", str(megabytes)))
        root = os.fsencode(f"/proc/{self.process().pid}/root/data/odd")
        with open(root + b"/new\nline \xff\xfe '\"$", "wb") as file:
            file.write(b"an odd name")
        os.setxattr(root + b"/tagged", "user.perdure", b"\x00 value \xff")
        os.setxattr(root + b"/tagged", "security.capability", base64.b64decode(CAP_NET_BIND_SERVICE))
        os.utime(root + b"/tagged", ns=(1_700_000_000_123_456_789, 1_700_000_001_987_654_321))
        os.utime(root + b"/dangling", ns=(1_600_000_000_000_000_001, 1_600_000_000_000_000_001), follow_symlinks=False)
        os.utime(root, ns=(1_500_000_000_000_000_005, 1_500_000_000_000_000_005))


CAP_NET_BIND_SERVICE = "AAAAAgAEAAAAAAAAAAAAAAAAAAA="
"""struct vfs_cap_data of revision 2 with cap_net_bind_service permitted (linux/capability.h)."""

FILL_SCRIPT = r"""
mkdir -p /data/odd /root/.config /opt/tool/bin
echo 'what a user wrote' > /data/notes
dd if=/dev/urandom of=/data/random bs=1M count=@MEGABYTES@ 2>/dev/null
printf '#!/bin/sh\necho installed\n' > /opt/tool/bin/tool; chmod 4755 /opt/tool/bin/tool
echo 'set -o vi' > /root/.config/shell; chmod 600 /root/.config/shell; chmod 700 /root/.config
ln /data/notes /data/odd/hard; ln /data/notes /root/hard
ln -s ../nowhere /data/odd/dangling; ln -s /opt/tool/bin/tool /usr/bin/tool
mkfifo -m 640 /data/odd/fifo
echo tagged > /data/odd/tagged
dd if=/dev/zero of=/data/odd/sparse bs=1 count=1 seek=8388607 2>/dev/null
echo owned > /home/app/owned; chown 1000:1000 /home/app/owned; chmod 0 /home/app/owned
mkdir -p /data/odd/locked; chmod 1700 /data/odd/locked; chown 12345:54321 /data/odd/locked
: > /data/odd/empty; mkdir '/data/odd/ leading and trailing '; echo x > '/data/odd/-rf *'
rm /usr/bin/wget; rm -r /var; mkdir /var; echo new > /var/only
mv /etc/passwd /etc/passwd.away; cp /etc/passwd.away /etc/passwd
"""
