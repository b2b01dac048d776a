"""The promises about data, and about ports, as checks over what survived: asked at each effect that matters, and at the
end of a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.crash.plant import Call, Survivors
from tests.fakes.engine import FakeSnapshot

from perdure.api.names import Identity, RuntimeRef, Uid
from perdure.api.network import PortPolicy
from perdure.api.phases import Phase, may_follow
from perdure.plan.health import HealthKind
from perdure.plan.operations import DURABLE
from perdure.plan.world import HostPort, Op, TaskState

MIN_LEASE_SECONDS = 10.0
_ENDS = frozenset({HealthKind.EXITED})


class Broken(AssertionError):
    """A promise was broken; the message says which."""


class Promises:
    """Watches one case. `purged`: identities whose data a person wants gone."""

    def __init__(self, survivors: Survivors) -> None:
        self._survivors = survivors
        self.broken: list[str] = []
        self._phases: dict[Uid, Phase] = {}
        survivors.watch = self._on_call
        survivors.machine.on_remove = self._on_remove
        survivors.machine.on_start = self._on_start
        survivors.sandboxes.on_serve = self._on_serve
        self._numbers: dict[tuple[Uid, str], int] = {}

    # ------------------------------------------------------------------------------------------ at effects

    def _on_call(self, call: Call) -> None:
        if call.name == "archives.delete" and call.when == "before" and Op.PURGE not in self._open_intents().values():
            self._break("P2: an archive is deleted without the committed intent of a purge")

        if call.name == "cluster.write_status":
            self._check_phases()

    def _check_phases(self) -> None:
        for runtime in self._survivors.cluster.runtimes.values():
            if runtime.status.phase is None:
                continue
            before, after = self._phases.get(runtime.uid), Phase(runtime.status.phase)
            if not may_follow(before, after):
                self._break(f"phase {after} was published after {before}")
            self._phases[runtime.uid] = after

    def _on_remove(self, snapshot: FakeSnapshot) -> None:
        uid, key = snapshot.ref.uid, snapshot.facts.key
        op, lease = self._open_intents().get(uid), self._survivors.tables.leases.get(uid)
        if op not in DURABLE:
            self._break(f"P2: {key} is removed, and no intent to do so is committed")
        if lease is None or not lease.token or lease.expires_at < self._survivors.clock() + MIN_LEASE_SECONDS:
            self._break(f"P2: {key} is removed without a lease")
        if op is Op.PURGE:
            return
        own = {name: text for name, text in snapshot.files.items() if name in self._written(uid)}
        if own and not any(held == snapshot.files for held in self._archived(snapshot).values()):
            self._break(f"P2: {key} is removed, and no verified archive holds what is in it")

    def _on_start(self, snapshot: FakeSnapshot) -> None:
        uid, key = snapshot.ref.uid, snapshot.facts.key
        missing = self._written(uid).keys() - snapshot.files.keys()
        if missing:
            self._break(f"P3: a task starts on {key} without {len(missing)} files that this life wrote")
        if snapshot.facts.gate is not None:
            self._break(f"P3: a task starts on {key} behind a shut gate")
        restored = self._restored(snapshot)
        if restored is not None and restored.keys() - snapshot.files.keys():
            self._break(f"P3: a task starts on {key} without what was preserved for it")
        self._check_network(snapshot.ref)
        machine = self._survivors.machine
        if any(task.key == key and task.facts.state is TaskState.RUNNING for task in machine.tasks.values()):
            self._break(f"two tasks are on {key}")

    def _check_network(self, ref: RuntimeRef) -> None:
        container = self._survivors.machine.containers[ref.container_id]
        sandbox = self._survivors.sandboxes.made.get(ref.uid)
        if sandbox is None or not sandbox.attached:
            self._break(f"a program of {ref} starts before its network is there")
        elif container.plan.netns != sandbox.netns:
            self._break(f"a program of {ref} starts in {container.plan.netns}, and its network is in {sandbox.netns}")

    def _on_serve(self, ref: RuntimeRef, ports: tuple[HostPort, ...]) -> None:
        """Nothing is served that the ledger does not have published for it, and a Dynamic number is for ever."""
        known = self._survivors.sandboxes.made.get(ref.uid)
        names = {port.name for port in ports}
        # A port that was taken out of the spec has lost its number, even if it comes back by the same name.
        self._numbers = {key: at for key, at in self._numbers.items() if key[0] != ref.uid or key[1] in names}
        for port in ports:
            if (known is None or port not in known.ports) and port.host_port != self._published(ref.uid, port):
                self._break(f"{port} of {ref} is served, and the ledger does not have it published")
            if self._numbers.setdefault((ref.uid, port.name), port.host_port) != port.host_port:
                if port.name not in self._static(ref.uid):
                    self._break(f"port {port.name} of {ref} was {self._numbers[ref.uid, port.name]}, and is now {port}")
                self._numbers[ref.uid, port.name] = port.host_port

    def _published(self, uid: Uid, port: HostPort) -> int | None:
        for (_, at), entry in self._survivors.tables.ports.items():
            if (entry.uid, entry.reservation.name, at.transport) == (uid, port.name, port.protocol) and entry.published:
                return at.number
        return None

    def _static(self, uid: Uid) -> frozenset[str]:
        runtimes = (runtime for runtime in self._survivors.cluster.runtimes.values() if runtime.uid == uid)
        return frozenset(
            port.name for runtime in runtimes for port in runtime.spec.ports if port.policy is PortPolicy.STATIC
        )

    def _restored(self, snapshot: FakeSnapshot) -> Mapping[str, str] | None:
        """What a first start must find: the newest archive of the identity that is older than this life."""
        runtime = next((r for r in self._survivors.cluster.runtimes.values() if r.uid == snapshot.ref.uid), None)
        if runtime is None or runtime.spec.restore.policy == "None":
            return None
        tables = self._survivors.tables
        if runtime.spec.restore.policy == "Archive":
            held = [e for e in tables.archives.values() if e.facts.object_name == runtime.spec.restore.archive]
        else:
            held = [e for e in tables.verified(snapshot.ref.identity) if e.facts.uid != snapshot.ref.uid]
        return self._survivors.store.archives[held[-1].facts.sequence].files if held else None

    # ------------------------------------------------------------------------------------------ at the end

    def check_end(self, purged: frozenset[Identity], lost: frozenset[Uid]) -> None:
        """Every file is somewhere, every intent has its end. `lost`: lives whose files a person gave up."""
        survivors = self._survivors
        for uid, files in survivors.machine.written.items():
            identity = self._identity(uid)
            if identity in purged or uid in lost:
                continue
            kept: set[str] = set()
            for snapshot in survivors.machine.snapshots.values():
                kept |= snapshot.files.keys()
            for sequence, entry in survivors.tables.archives.items():
                stored = survivors.store.archives.get(sequence)
                if entry.state == "verified" and stored is not None and stored.complete:
                    kept |= stored.files.keys()
            missing = files.keys() - kept
            if missing:
                self._break(f"P1: {len(missing)} of {len(files)} files of {uid} are nowhere")
        for row in survivors.tables.operations.values():
            if row.started_at is None or row.finished_at is None:
                self._break(f"P4: operation {row.op} of {row.ref} has no {'end' if row.started_at else 'start'}")
        self._check_health_events()
        for uid, facts in survivors.sandboxes.made.items():
            if any(port.host_port != self._published(uid, port) for port in facts.ports):
                self._break(f"{facts.ports} of {uid} are served, and the ledger does not have all of them published")
        lives = {runtime.uid for runtime in survivors.cluster.runtimes.values()}
        for (_, at), port in survivors.tables.ports.items():
            if port.uid not in lives:
                self._break(f"{at} is reserved for {port.uid}, whose object is gone")
        if survivors.disk.unsent:
            self._break("P7: rows did not reach the ledger")
        for runtime in self._survivors.tables.runtimes.values():
            if runtime.refused:
                self._break(f"the ledger refused {runtime.refused} moves of {runtime.ref} that are on no edge")
        self.raise_broken()

    def _check_health_events(self) -> None:
        """An end is told once, and only one that nobody asked for."""
        told = Counter(row.ref.uid for row in self._survivors.tables.health_events.values() if row.kind in _ENDS)
        for uid, times in (told - Counter(self._survivors.machine.unasked)).items():
            self._break(f"P7: {times} ends of {uid} were told that did not happen, or that were asked for")

    def raise_broken(self) -> None:
        if self.broken:
            raise Broken("\n".join(self.broken))

    # ------------------------------------------------------------------------------------------ inside

    def _break(self, message: str) -> None:
        self.broken.append(message)

    def _open_intents(self) -> dict[Uid, Op | None]:
        return {
            entry.ref.uid: entry.op
            for entry in self._survivors.tables.operations.values()
            if entry.started_at is not None and entry.finished_at is None
        }

    def _written(self, uid: Uid) -> Mapping[str, str]:
        return self._survivors.machine.written.get(uid, {})

    def _archived(self, snapshot: FakeSnapshot) -> dict[int, Mapping[str, str]]:
        held: dict[int, Mapping[str, str]] = {}
        for sequence, entry in self._survivors.tables.archives.items():
            stored = self._survivors.store.archives.get(sequence)
            if entry.state == "verified" and entry.facts.snapshot_key == snapshot.facts.key and stored is not None:
                held[sequence] = stored.files if stored.complete else {}
        return held

    def _identity(self, uid: Uid) -> Identity | None:
        tables = self._survivors.tables
        if uid in tables.runtimes:
            return tables.runtimes[uid].ref.identity
        return next((s.ref.identity for s in self._survivors.machine.snapshots.values() if s.ref.uid == uid), None)
