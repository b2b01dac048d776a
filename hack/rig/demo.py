"""``hack/demo``: Perdure's main job on real parts, told step by step, every claim checked without asking Perdure.

Sets up an environment of its own, with ``perdure standalone`` on it, and takes it down again however it ends.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rig.clients import Ctr, Kubectl
from rig.environment import ENGINE_NAMESPACE, Environment
from rig.filetree import Tree, difference, digest, tree_of
from rig.narrator import ClaimError, Narrator
from rig.paths import CHECKOUT
from rig.processes import DaemonError, ProcessIdentity, wait_until
from rig.progress import CommandError, say
from rig.traces import traces_of, walk

DIRECTORY = CHECKOUT / ".perdure-demo"
SAMPLE = "deploy/samples/botruntime.yaml"
NAME = "ada"
WAIT_SECONDS = 60.0
WRITES = (
    "echo 'day one' > /data/diary",
    "head -c 8388608 /dev/urandom > /data/world.save",
    "printf '#!/bin/sh\\necho it works\\n' > /usr/bin/mytool && chmod 755 /usr/bin/mytool",
    "echo 'set -o vi' > /root/.profile && chmod 600 /root/.profile",
    "rm /usr/bin/wget",
)
"""Data, an installed program, a dotfile, and a deletion."""


@dataclass(slots=True)
class Story:
    """The steps. ``files`` is the whole file system as it must stay; ``lives`` the uids that the name has had,
    ``archives`` those of the RuntimeArchives that were looked at."""

    environment: Environment
    narrator: Narrator
    files: Tree = field(default_factory=dict)
    lives: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def tell(self) -> None:
        """All of it. Raises ClaimError, CommandError or DaemonError at the first thing that is not as told."""
        self.narrator.plain("\nPerdure: runtimes that outlast their containers.")
        self.narrator.plain(
            "On a kube-apiserver, a containerd and a PostgreSQL that were started for this, and are real."
        )
        self._apply()
        self._talk()
        self._write()
        self._crash()
        self._stop_and_start()
        self._expire()
        self._delete()
        self._apply_again()
        self._purge()
        self._look_back()

    def _apply(self) -> None:
        tell = self.narrator
        tell.step("A runtime is one object. Apply it, and a container runs.")
        tell.command("kubectl", "apply", "-f", SAMPLE)
        tell.command("kubectl", "wait", "--for=condition=Ready", f"br/{NAME}", "--timeout=60s")
        tell.command("kubectl", "get", "br", NAME)
        self.lives.append(self._uid())
        pid = self._process().pid
        tell.claim(pid > 0, f"containerd runs it as {self._container()}, main process {pid}")

    def _talk(self) -> None:
        tell = self.narrator
        tell.step("It has an address of its own, and a port of the node leads to it.")
        server = "mkdir -p /data/www; echo 'hello from ada' > /data/www/index.html; httpd -p 8080 -h /data/www"
        tell.script(f"{NAME} #", [server])
        self._run(server)
        tell.command("kubectl", "get", "br", NAME, "-o", "jsonpath={.status.address} {.status.ports}")
        address, number = self._address()
        for host, port in ((address, 8080), ("127.0.0.1", number)):
            said = self._fetch(host, port)
            tell.claim(said == "hello from ada", f"http://{host}:{port}/ answers: {said}", said)

    def _write(self) -> None:
        tell = self.narrator
        tell.step("It writes: data, a program, a dotfile; and it removes a file of the image.")
        tell.script(f"{NAME} #", WRITES)
        image = self._tree()
        self._run("; ".join(("set -e", *WRITES)))
        self.files = self._tree()
        changed = len(difference(image, self.files))
        tell.claim(
            changed >= len(WRITES),
            f"{len(self.files)} files and folders, {changed} of them changed; "
            f"digest of all content and metadata: {digest(self.files)[:16]}",
        )

    def _crash(self) -> None:
        tell, before = self.narrator, self._process()
        address, _ = self._address()
        tell.step("Its main process is killed.")
        tell.command("kill", "-9", str(before.pid))
        began = time.monotonic()
        self._wait(lambda: self._running() not in (None, before), "a new main process runs")
        took = time.monotonic() - began
        tell.command("kubectl", "wait", "--for=jsonpath={.status.restarts}=1", f"br/{NAME}", "--timeout=60s")
        self._wait_ready()
        status = self._object()["status"]
        tell.claim(self._address()[0] == address, f"its address is {address} still", status["address"])
        tell.claim(
            status["lastExit"].get("signal") == 9,
            f"process {self._process().pid} runs, seen {took:.1f} s after the kill; 1 restart, last exit by signal 9",
            status,
        )
        self._same_files()

    def _stop_and_start(self) -> None:
        tell = self.narrator
        tell.step("It is stopped, and started again.")
        self._patch({"desiredState": "Stopped"})
        tell.command("kubectl", "wait", "--for=jsonpath={.status.phase}=Stopped", f"br/{NAME}", "--timeout=60s")
        tell.claim(self._running() is None, "no process runs")
        self._patch({"desiredState": "Running"})
        tell.command("kubectl", "wait", "--for=condition=Ready", f"br/{NAME}", "--timeout=60s")
        self._same_files()

    def _expire(self) -> None:
        tell = self.narrator
        tell.step("Stopped for longer than its TTL, its container is cleaned up. Its data is archived first.")
        self._patch({"desiredState": "Stopped", "stoppedTTL": "2s"})
        tell.command("kubectl", "wait", "--for=jsonpath={.status.phase}=Removed", f"br/{NAME}", "--timeout=60s")
        tell.command("kubectl", "get", "br", NAME, "-o", "wide")
        self._new_archive()
        tell.command("kubectl", "get", "runtimearchives")
        self._no_traces(
            "the object is still there, and its logs; container, snapshot, network and address are gone",
            but=("archives", "logs"),
        )
        tell.step("Wanted again, it is where it was.")
        self._patch({"desiredState": "Running"})
        tell.command("kubectl", "wait", "--for=condition=Ready", f"br/{NAME}", "--timeout=60s")
        self._same_files()

    def _delete(self) -> None:
        tell = self.narrator
        tell.step("The object is deleted. Its data is archived and verified first, and only then removed.")
        tell.command("kubectl", "delete", "br", NAME)
        tell.command("kubectl", "get", "runtimearchives")
        self._new_archive()
        self._no_traces("container, snapshot, lease, network, address and logs are gone")

    def _apply_again(self) -> None:
        tell = self.narrator
        tell.step("The same name is applied again, and everything is back.")
        tell.command("kubectl", "apply", "-f", SAMPLE)
        tell.command("kubectl", "wait", "--for=condition=Ready", f"br/{NAME}", "--timeout=60s")
        self.lives.append(self._uid())
        tell.claim(self.lives[0] != self.lives[1], f"it is a new object, uid {self.lives[1][:8]}…", self.lives)
        self._same_files()
        tell.script(f"{NAME} #", ["mytool"])
        tell.claim(self._run("mytool") == "it works\n", "the installed program says: it works")

    def _purge(self) -> None:
        tell = self.narrator
        tell.step("Deleted with Purge, nothing is left anywhere.")
        self._patch({"deletionPolicy": "Purge"})
        tell.command("kubectl", "delete", "br", NAME)
        self._wait(lambda: self._kubectl.get("runtimearchives")["items"] == [], "no RuntimeArchive is left")
        left = [str(path) for path in self._archives() if path.is_file()]
        tell.claim(left == [], "no RuntimeArchive, and no file in the store of archives", left)
        self._no_traces("nothing of either life on containerd, on the disk or in the kernel")

    def _look_back(self) -> None:
        tell = self.narrator
        tell.step("What was done is on record, although the object is gone.")
        history = tell.command("perdure", "history", f"br/{NAME}")
        operations = ("start", "restart", "stop", "cleanup_container", "preserve", "restore", "purge")
        missing = [op for op in operations if op not in history]
        tell.claim(missing == [], "every operation is in the ledger", missing)

    # ------------------------------------------------------------------------------------------ checks

    def _same_files(self) -> None:
        now = self._tree()
        same = f"every file is as it was, content and metadata: {digest(now)[:16]}"
        self.narrator.claim(digest(now) == digest(self.files), same, difference(self.files, now)[:5])

    def _no_traces(self, text: str, but: tuple[str, ...] = ("archives",)) -> None:
        """``but``: folders of the state directory in which something of it is meant to be."""
        environment = self.environment
        folders = (environment.state_directory, environment.run_directory)

        def left() -> list[str]:
            found = [
                trace
                for uid in self.lives
                for trace in traces_of(uid, self._ctr, environment.cgroup_parent, folders, environment.network)
            ]
            kept = [str(environment.state_directory / name) for name in but]
            return [trace for trace in found if not any(folder in trace for folder in kept)]

        self._wait(lambda: left() == [], text, lambda: str(left()))
        self.narrator.claim(True, text)

    def _new_archive(self) -> None:
        """The one that was not there before: its RuntimeArchive, its manifest and its bytes agree."""

        def listed() -> list[dict[str, Any]]:
            objects: list[dict[str, Any]] = self._kubectl.get("runtimearchives")["items"]
            return [one for one in objects if one["metadata"]["uid"] not in self.archives and "sha256" in one["status"]]

        self._wait(lambda: len(listed()) == 1, "one new RuntimeArchive is listed")
        (archive,) = listed()
        self.archives.append(archive["metadata"]["uid"])
        told = archive["status"]["sha256"]
        (manifest,) = (
            path
            for path in self._archives()
            if path.name.endswith(".json") and json.loads(path.read_text())["sha256"] == told
        )
        stored = manifest.with_name(manifest.name.replace(".json", ".tar.zst"))
        with stored.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        self.narrator.claim(
            told == found,
            f"{stored.name} on the disk ({stored.stat().st_size >> 20} MiB) has the sha256 that its manifest and the "
            f"RuntimeArchive name: {found[:16]}",
            told,
        )

    def _archives(self) -> list[Path]:
        return list(walk(self.environment.state_directory / "archives"))

    # ------------------------------------------------------------------------------------------ hands and eyes

    @property
    def _kubectl(self) -> Kubectl:
        return Kubectl(self.environment.control_plane.admin_kubeconfig)

    @property
    def _ctr(self) -> Ctr:
        return Ctr(self.environment.engine.address, ENGINE_NAMESPACE)

    def _patch(self, spec: dict[str, str]) -> None:
        patch = json.dumps({"spec": spec}, separators=(",", ":"))
        self.narrator.command("kubectl", "patch", "br", NAME, "--type", "merge", "-p", patch)

    def _wait_ready(self) -> None:
        self._kubectl("wait", "--for=condition=Ready", f"br/{NAME}", "--timeout=60s")

    def _object(self) -> dict[str, dict[str, dict[str, object]]]:
        found: dict[str, dict[str, dict[str, object]]] = self._kubectl.get("br", NAME)
        return found

    def _address(self) -> tuple[str, int]:
        """Its address, and the port of the node that leads to it."""
        status: dict[str, Any] = self._object()["status"]
        return str(status["address"]), int(status["ports"][0]["hostPort"])

    def _uid(self) -> str:
        return str(self._object()["metadata"]["uid"])

    def _container(self) -> str:
        return f"br-{self.lives[-1]}"

    def _running(self) -> ProcessIdentity | None:
        for row in self._ctr("tasks", "ls").splitlines()[1:]:
            columns = row.split()
            if columns[0] == self._container() and columns[2] == "RUNNING":
                return ProcessIdentity.of(int(columns[1]))
        return None

    def _process(self) -> ProcessIdentity:
        found = self._running()
        if found is None:
            raise ClaimError(f"not so: {self._container()} has a running main process")
        return found

    def _tree(self) -> Tree:
        return tree_of(self._process().pid)

    def _run(self, script: str) -> str:
        """Through a file in the container's /dev/shm, which is not of its layer: `ctr` may end before it has read what a
        quick process wrote."""
        exec_id = f"demo-{time.monotonic_ns()}"
        output = f"/dev/shm/{exec_id}"
        wrapped = f"exec > {output}\n{script}"
        self._ctr("tasks", "exec", "--exec-id", exec_id, self._container(), "/bin/sh", "-c", wrapped)
        seen = Path(f"/proc/{self._process().pid}/root{output}")
        text = seen.read_text()
        seen.unlink()
        return text

    def _fetch(self, host: str, port: int) -> str:
        """The body that an HTTP server answers with. Raises ClaimError where nobody does."""
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/", timeout=10) as answer:
                body: bytes = answer.read()
        except OSError as error:
            raise ClaimError(f"not so: somebody answers on {host}:{port}; seen: {error}") from error
        return body.decode().strip()

    def _wait(self, condition: Callable[[], bool], what: str, seen: Callable[[], str] = str) -> None:
        try:
            wait_until(condition, what, seconds=WAIT_SECONDS)
        except DaemonError as error:
            raise ClaimError(f"not so after {WAIT_SECONDS:.0f} s: {what}; seen: {seen()}") from error


def main(arguments: list[str]) -> int:
    """Entry point of ``hack/demo``."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    environment = Environment(options.dir.resolve())
    if environment.parts():
        say(
            f"hack/demo: {environment.directory} is up already; end it with: hack/env down --dir {environment.directory}"
        )
        return 1
    kept = False
    try:
        code = _demo(environment)
        kept = options.keep
    except KeyboardInterrupt:
        say("\nhack/demo: interrupted")
        code = 130
    except (RuntimeError, OSError) as error:
        say(f"hack/demo: {error}")
        code = 1
    finally:
        if not kept:
            _clean_up(environment)
    if kept:
        print(_HOW_TO_LOOK_AROUND.format(directory=environment.directory))
    return code


def _demo(environment: Environment) -> int:
    environment.up(operator=True)
    variables = {**environment.variables(), "PATH": environment.search_path()}
    narrator = Narrator(variables, CHECKOUT)
    began = time.monotonic()
    try:
        Story(environment, narrator).tell()
    except (ClaimError, CommandError, DaemonError) as error:
        narrator.end(f"The story broke off. {error}", good=False)
        narrator.plain(environment.operator.log_tail(40))
        return 1
    took = time.monotonic() - began
    narrator.end(f"All {narrator.claims} claims hold. The story took {took:.0f} s.", good=True)
    return 0


def _clean_up(environment: Environment) -> None:
    """Not to be interrupted: what it would leave behind is hard to find."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("==> cleaning up")
    environment.down()


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hack/demo",
        description="Sets up a real Kubernetes API server, containerd and PostgreSQL on this machine, shows what Perdure "
        "does on them, checks every claim (exit code 0 only if all hold), and takes everything down again.",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running, and say how to look around")
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="where to keep it all; default: %(default)s")
    return parser


_HOW_TO_LOOK_AROUND = """
Everything still runs. To look around:
   eval "$(hack/env up --dir {directory})"     # kubectl, ctr and perdure on PATH
   kubectl apply -f deploy/samples/botruntime.yaml && kubectl get br -o wide
   perdure nodes -o wide
   hack/env status --dir {directory}           # what runs, and where the logs are
To end it:
   hack/env down --dir {directory}"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
