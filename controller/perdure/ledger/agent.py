"""`PostgresAgentLedger`: the `AgentLedger` port. One per agent process; every row it writes is of its installation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from psycopg import sql
from psycopg.rows import DictRow

from perdure.api.archive import object_name
from perdure.api.conditions import Reason
from perdure.api.names import (
    InstallationId,
    NamespaceUid,
    NodeId,
    NodeName,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.runtime import Restore
from perdure.ledger import catalogue, health, leases, operations, ports
from perdure.ledger.database import Connection, Database, refuses_data
from perdure.ledger.identity import read_identity
from perdure.plan.binding import Refused
from perdure.plan.certainty import Certain, Present, Unknown
from perdure.plan.operations import entry_operation_id
from perdure.plan.world import ArchiveFacts, Bound, LedgerFacts, Workspace
from perdure.reconcile.ports.errors import LeaseBusy, LedgerUnavailable, PortError, RowRefused
from perdure.reconcile.ports.journal import (
    HealthRow,
    LedgerRow,
    OperationFailing,
    OperationFinished,
    OperationStarted,
)
from perdure.reconcile.ports.ledger import Binding, Catalogued, Lease, LedgerIdentity
from perdure.reconcile.uptime import boottime

_TOKEN_BYTES = 16


class PostgresAgentLedger:
    """Leases are held in the name of the node: a restarted agent takes over its own at once."""

    def __init__(
        self,
        database: Database,
        installation: InstallationId,
        node: NodeId,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._database = database
        self._installation = installation
        self._node = node
        self._clock = clock

    async def identity(self) -> LedgerIdentity:
        return await read_identity(self._database, self._installation)

    async def facts(self, ref: RuntimeRef, restore: Restore) -> Certain[LedgerFacts]:
        parameters = operations.identity_parameters(self._installation, ref) | catalogue.restore_parameters(restore)
        try:
            row = await self._database.row(f"asking what is known of {ref}", catalogue.FACTS, parameters)
        except LedgerUnavailable as error:
            return Unknown(str(error))
        if row is None:
            return Unknown(f"asking what is known of {ref}: the ledger answered nothing")
        return Present(
            LedgerFacts(
                bound=_bound(row),
                data_seen=row["snapshot_key"],
                released=row["released"],
                force_released=row["force_released"],
                latest=catalogue.archive_facts(row["latest"]) if row["latest"] else None,
                quarantined=row["quarantined"],
                named=catalogue.archive_facts(row["named"]) if row["named"] else None,
                unarchived=tuple(Uid(uid) for uid in row["unarchived"]),
                given_up=tuple(Uid(uid) for uid in row["given_up"]),
                put_away=catalogue.archive_facts(row["put_away"]) if row["put_away"] else None,
                unfinished=tuple(OperationId(id_) for id_ in row["unfinished"]),
                purgeable=tuple(row["purgeable"]),
                spared=tuple(row["spared"]),
            )
        )

    # ------------------------------------------------------------------------------------------ operations

    async def apply(self, rows: Sequence[LedgerRow], node: NodeName) -> None:
        """One row is one statement, and one round trip."""
        doing = f"writing {len(rows)} rows of operations and health"
        try:
            await self._write(doing, [self._apply(row, node) for row in rows])
        except LedgerUnavailable as error:
            if refuses_data(error):
                raise RowRefused(str(error)) from error
            raise

    async def _write(self, doing: str, statements: Sequence[tuple[sql.SQL, dict[str, object]]]) -> None:
        if len(statements) == 1:
            await self._database.write(doing, *statements[0])
            return

        async def work(connection: Connection) -> None:
            async with connection.pipeline(), connection.transaction():
                for statement, parameters in statements:
                    await connection.execute(statement, parameters)

        await self._database.run(doing, work)

    def _apply(self, row: LedgerRow, node: NodeName) -> tuple[sql.SQL, dict[str, object]]:
        match row:
            case OperationStarted():
                return operations.STARTED, operations.started_parameters(self._installation, row, node)
            case OperationFailing():
                return operations.FAILING, operations.failing_parameters(self._installation, row)
            case OperationFinished():
                return operations.FINISHED, operations.finished_parameters(self._installation, row, node, release=False)
            case HealthRow():
                return health.TOLD, health.parameters(self._installation, row, node)

    async def begin(self, row: OperationStarted, node: NodeName, lease: Lease) -> None:
        parameters = operations.started_parameters(self._installation, row, node)
        await self._fenced(f"beginning {row.op} of {row.ref}", operations.BEGIN, parameters, lease)

    async def finish(self, row: OperationFinished, node: NodeName, lease: Lease, *, release: bool) -> None:
        parameters = operations.finished_parameters(self._installation, row, node, release=release)
        await self._fenced(f"finishing operation {row.id} of {row.ref}", operations.FINISH, parameters, lease)

    async def _fenced(self, doing: str, statement: sql.SQL, parameters: dict[str, object], lease: Lease) -> DictRow:
        """The row of a statement that answers whether its lease was `held`. Raises `StaleFence` if it was not."""
        row = await self._database.row(doing, statement, parameters | leases.parameters(lease))
        if row is None or not row["held"]:
            raise leases.stale(doing, lease)
        return row

    # ------------------------------------------------------------------------------------------ leases

    async def acquire(self, key: str, ttl: float) -> Lease:
        """`ttl` in seconds. If an answer was lost, the repetition takes over what the first try took."""
        asked_at = self._clock()
        doing, token = f"taking the lease {key}", _new_token(key)
        parameters = {"installation": self._installation, "key": key}
        mine = {**parameters, "holder": self._node, "token": token, "ttl": ttl}
        row = await self._database.row(doing, leases.ACQUIRE, mine)
        if row is not None:
            return Lease(key, token, row["fence"], asked_at + ttl)
        other = await self._database.row(doing, leases.HOLDER, parameters)
        raise LeaseBusy(key, f"node {other['holder']}", other["seconds"]) if other else LeaseBusy(key, "nobody", 0)

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        """A lease that has run out can be renewed as long as nobody took it."""
        asked_at = self._clock()
        doing = f"renewing the lease {lease.key}"
        parameters = {"installation": self._installation, "ttl": ttl, **leases.parameters(lease)}
        if await self._database.row(doing, leases.RENEW, parameters) is None:
            raise leases.stale(doing, lease)
        return Lease(lease.key, lease.token, lease.fence, asked_at + ttl)

    async def renew_all(self, leases_: Sequence[Lease], ttl: float) -> Sequence[Lease]:
        asked_at = self._clock()
        parameters = {
            "installation": self._installation,
            "ttl": ttl,
            "keys": [lease.key for lease in leases_],
            "tokens": [lease.token for lease in leases_],
            "fences": [lease.fence for lease in leases_],
        }
        rows = await self._database.rows(f"renewing {len(leases_)} leases", leases.RENEW_ALL, parameters)
        ours = {row["key"] for row in rows}
        return tuple(replace(lease, expires_at=asked_at + ttl) for lease in leases_ if lease.key in ours)

    async def release(self, lease: Lease) -> None:
        """Not ours any more: nothing."""
        parameters = {"installation": self._installation, **leases.parameters(lease)}
        await self._database.write(f"giving the lease {lease.key} back", leases.RELEASE, parameters)

    # ------------------------------------------------------------------------------------------ archives

    async def begin_archive(
        self, operation: OperationId, ref: RuntimeRef, workspace: Workspace, node: NodeId, lease: Lease
    ) -> int:
        doing = f"beginning an archive of {ref}"
        row = await self._database.row(
            doing,
            catalogue.BEGIN,
            {
                **operations.identity_parameters(self._installation, ref),
                **leases.parameters(lease),
                "operation": operation,
                "node_id": node,
                "snapshot_key": workspace.key,
                "image": workspace.image,
                "image_digest": workspace.image_digest,
                "chain_id": workspace.chain_id,
            },
        )
        if row is None:
            raise leases.stale(doing, lease)
        return int(row["sequence"])

    async def finish_archive(self, archive: ArchiveFacts, lease: Lease) -> None:
        """Raises `LedgerUnavailable` if the catalogue has no such row: it is another one than when writing began."""
        doing = f"entering archive {archive.sequence} of {archive.kind}/{archive.namespace}/{archive.name}"
        parameters = {
            "installation": self._installation,
            "sequence": archive.sequence,
            "uid": archive.uid,
            "snapshot_key": archive.snapshot_key,
            "store": archive.store,
            "node_id": archive.node_id,
            "sha256": archive.sha256,
            "bytes": archive.bytes,
            "entries": archive.entries,
            "uncompressed_bytes": archive.uncompressed_bytes,
            "empty": archive.empty,
            "object_name": object_name(archive.kind, archive.name, archive.sequence),
        }
        row = await self._fenced(doing, catalogue.VERIFY, parameters, lease)
        if not row["done"]:
            raise LedgerUnavailable(
                f"{doing}: the catalogue has that sequence as {row['state'] or 'unknown'}, not as this archive being "
                "written; the snapshot is kept and archived anew"
            )

    async def announce_removal(self, sequence: int, lease: Lease) -> None:
        doing = f"announcing that the snapshot of archive {sequence} is removed"
        parameters = {"installation": self._installation, "sequence": sequence}
        row = await self._fenced(doing, catalogue.ANNOUNCE_REMOVAL, parameters, lease)
        if not row["done"]:
            raise LedgerUnavailable(f"{doing}: the catalogue has it as {row['state'] or 'unknown'}, not as verified")

    async def take_removal_back(self, ref: RuntimeRef, key: SnapshotKey, lease: Lease) -> None:
        parameters = {**operations.identity_parameters(self._installation, ref), "snapshot_key": key}
        await self._fenced(f"keeping snapshot {key} of {ref}", catalogue.TAKE_REMOVAL_BACK, parameters, lease)

    async def put_away(self, sequence: int, lease: Lease) -> None:
        doing = f"recording that a clean-up left the data in archive {sequence}"
        parameters = {"installation": self._installation, "sequence": sequence}
        row = await self._fenced(doing, catalogue.PUT_AWAY, parameters, lease)
        if not row["done"]:
            raise LedgerUnavailable(f"{doing}: the catalogue has it as {row['state'] or 'unknown'}, not as verified")

    async def catalogued(self, found: ArchiveFacts) -> Catalogued:
        parameters = {
            "installation": self._installation,
            "sequence": found.sequence,
            "uid": found.uid,
            "snapshot_key": found.snapshot_key,
            "sha256": found.sha256,
        }
        doing = f"looking archive {found.sequence} up in the catalogue"
        row = await self._database.row(doing, catalogue.CATALOGUED, parameters)
        return Catalogued(row["it"]) if row is not None else Catalogued.NOTHING

    async def enter_archive(
        self, found: ArchiveFacts, ref: RuntimeRef, request: str, node: NodeName, lease: Lease, *, all_there_is: bool
    ) -> Catalogued:
        doing = f"entering archive {found.sequence} of {ref} again"
        known = await self.catalogued(found)
        if known not in (Catalogued.NOTHING, Catalogued.UNFINISHED):
            return known
        await self._database.row(doing, catalogue.USE_UP, {"sequence": found.sequence})
        parameters = {
            **catalogue.entry_parameters(self._installation, found, ref),
            "operation": entry_operation_id(ref.uid, found.sequence, found.sha256),
            "request": request,
            "node_name": node,
            "all_there_is": all_there_is,
            "message": f"archive {found.sequence} was entered into the catalogue again, as its manifest says",
        }
        row = await self._fenced(doing, catalogue.ENTER, parameters, lease)
        return Catalogued.SAME if row["done"] else await self.catalogued(found)

    async def purgeable(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        """Oldest first."""
        rows = await self._database.rows(
            f"listing purgeable archives of {ref}",
            catalogue.PURGEABLE,
            operations.identity_parameters(self._installation, ref),
        )
        return tuple(map(catalogue.archive_facts, rows))

    async def spared(self, ref: RuntimeRef) -> frozenset[int]:
        rows = await self._database.rows(
            f"listing what a purge of {ref} spares",
            catalogue.SPARED,
            operations.identity_parameters(self._installation, ref),
        )
        return frozenset(row["sequence"] for row in rows)

    async def mark_purging(self, ref: RuntimeRef, sequence: int, lease: Lease) -> None:
        """Raises `PortError(PurgeFailed)` for an archive that is purged already, is to be retained by now, or may be of a
        later life."""
        doing = f"marking archive {sequence} for its purge"
        parameters = {"installation": self._installation, "sequence": sequence, "uid": ref.uid}
        row = await self._fenced(doing, catalogue.MARK_PURGING, parameters, lease)
        if not row["done"]:
            raise PortError(f"{doing}: the catalogue has it as {row['state'] or 'unknown'}", reason=Reason.PURGE_FAILED)

    async def purging(self, node: NodeId) -> Sequence[ArchiveFacts]:
        """Oldest first; those that every node can read are among them."""
        parameters = {"installation": self._installation, "node_id": node}
        rows = await self._database.rows("listing archives that are to be deleted", catalogue.PURGING, parameters)
        return tuple(map(catalogue.archive_facts, rows))

    async def mark_purged(self, sequence: int) -> None:
        """Raises `PortError(PurgeFailed)` for an archive whose purge was never begun."""
        doing = f"marking archive {sequence} as purged"
        parameters = {"installation": self._installation, "sequence": sequence}
        if await self._database.row(doing, catalogue.MARK_PURGED, parameters) is None:
            raise PortError(f"{doing}: its purge was never begun", reason=Reason.PURGE_FAILED)

    async def quarantine(self, sequence: int, why: str) -> None:
        parameters = {"installation": self._installation, "sequence": sequence, "why": why}
        await self._database.write(f"putting archive {sequence} into quarantine", catalogue.QUARANTINE, parameters)

    # ------------------------------------------------------------------------------------------ ports

    async def replace_port(self, ref: RuntimeRef, node: NodeName, name: str, taken: int) -> int | Refused | None:
        """Only of this node: the ports of another one are not its agent's to move."""
        binding = Binding(ref.uid, node, self._node)

        async def work(connection: Connection) -> int | Refused | None:
            async with connection.transaction():
                return await ports.replace(connection, self._installation, binding, name, taken)

        return await self._database.run(f"asking for another port than {taken} for {name} of {ref}", work)

    async def ports_published(self, ref: RuntimeRef, published: Mapping[str, int]) -> bool:
        row = await self._database.row(
            f"recording that the ports of {ref} are served",
            ports.PUBLISH,
            {
                "installation": self._installation,
                "node_id": self._node,
                "uid": ref.uid,
                "names": list(published),
                "ports": list(published.values()),
            },
        )
        return row is not None and row["held"]


def _bound(row: DictRow) -> Bound | None:
    if row["bound_to"] is None or row["bound_in"] is None:
        return None
    return Bound(NodeId(row["bound_to"]), NamespaceUid(row["bound_in"]))


def _new_token(key: str) -> str:
    """Raises `PortError` where the machine has no randomness to give: a token that can be guessed protects nothing."""
    try:
        return secrets.token_hex(_TOKEN_BYTES)
    except (OSError, NotImplementedError) as error:
        raise PortError(
            f"taking the lease {key}: the machine gives no random numbers ({error}); see getrandom(2) and /dev/urandom",
            reason=Reason.INTERNAL_ERROR,
            of_node=True,
        ) from error
