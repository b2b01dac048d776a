"""`PostgresControllerLedger`: the `ControllerLedger` port. Its writes need no lease: each is decided by the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg import sql
from psycopg.rows import DictRow

from perdure.api.names import InstallationId, NamespaceUid, NodeId, NodeName, RuntimeRef
from perdure.api.runtime import Restore, RestorePolicy
from perdure.ledger import catalogue, operations, ports
from perdure.ledger.database import Connection, Database
from perdure.ledger.identity import read_identity
from perdure.plan.allotment import PortDemand
from perdure.plan.binding import Refused
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import Binding, BoundRow, LedgerIdentity

_BIND = sql.SQL("""
WITH bound AS (
    INSERT INTO bindings (installation, uid, node_name, node_id)
    VALUES (%(installation)s, %(uid)s, %(node_name)s, %(node_id)s)
    ON CONFLICT DO NOTHING
    RETURNING node_name, node_id
), runtime AS (
    INSERT INTO runtimes (installation, uid, namespace_uid, kind, namespace, name, node_name, image)
    SELECT %(installation)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, node_name, %(image)s
      FROM bound
    ON CONFLICT DO NOTHING
)
SELECT node_name, node_id FROM bound
 UNION ALL
SELECT node_name, node_id FROM bindings WHERE installation = %(installation)s AND uid = %(uid)s
""")

_BINDING = sql.SQL("SELECT node_name, node_id FROM bindings WHERE installation = %(installation)s AND uid = %(uid)s")

_FORCE_RELEASE = sql.SQL("""
WITH given_up AS (
    INSERT INTO runtimes AS runtime (
        installation, uid, namespace_uid, kind, namespace, name, force_released_at, force_release_reason
    )
    VALUES (%(installation)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, now(), %(reason)s)
    ON CONFLICT (installation, uid) DO UPDATE
       SET force_released_at = now(), force_release_reason = excluded.force_release_reason,
           version = runtime.version + 1, updated_at = now()
     WHERE runtime.force_released_at IS NULL
    RETURNING uid
)
INSERT INTO operations (
    installation, id, uid, namespace_uid, kind, namespace, name, node_name,
    op, source, outcome, message, started_at, finished_at, month
)
SELECT %(installation)s, %(id)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, '',
       'force_release', 'kubectl', 'success', %(reason)s, now(), now(),
       operation_month(%(installation)s, %(id)s, extract(epoch FROM now())::double precision)
  FROM given_up
ON CONFLICT DO NOTHING
""")


class PostgresControllerLedger:
    """One per controller process; every row is of its installation."""

    def __init__(self, database: Database, installation: InstallationId) -> None:
        self._database = database
        self._installation = installation

    async def identity(self) -> LedgerIdentity:
        return await read_identity(self._database, self._installation)

    async def read(self, ref: RuntimeRef, restore: Restore) -> BoundRow:
        doing = f"asking where {ref} is bound"
        parameters = operations.identity_parameters(self._installation, ref) | catalogue.restore_parameters(restore)
        row = await self._database.row(doing, catalogue.BOUND, parameters)
        if row is None:
            raise LedgerUnavailable(f"{doing}: the ledger answered nothing")
        archive = {
            RestorePolicy.LATEST: row["latest"],
            RestorePolicy.ARCHIVE: row["named"],
            RestorePolicy.NONE: None,
        }[restore.policy]
        return BoundRow(
            binding=_binding(ref, row) if row["node_id"] is not None else None,
            namespace_uid=NamespaceUid(row["namespace_uid"]) if row["namespace_uid"] is not None else None,
            released=row["released"],
            latest_node=NodeId(archive["node_id"]) if archive and archive["node_id"] is not None else None,
            archive_known=archive is not None,
        )

    async def bind(
        self, ref: RuntimeRef, node: NodeName, node_id: NodeId, image: str, demand: PortDemand | None = None
    ) -> Binding | Refused:
        doing = f"binding {ref} to {node}"
        parameters = {
            **operations.identity_parameters(self._installation, ref),
            "node_name": node,
            "node_id": node_id,
            "image": image,
        }

        async def bind(connection: Connection) -> Binding:
            row = await (await connection.execute(_BIND, parameters)).fetchone()
            if row is None:
                # Another controller's insert committed while ours waited for it: our snapshot was older than its row.
                row = await (await connection.execute(_BINDING, parameters)).fetchone()
            if row is None:
                raise LedgerUnavailable(f"{doing}: the ledger neither took the binding nor has one")
            return _binding(ref, row)

        async def bind_with_ports(connection: Connection) -> Binding:
            async with connection.transaction():
                binding = await bind(connection)
                numbers = await ports.reserve(connection, self._installation, binding, demand or PortDemand(()))
                if isinstance(numbers, Refused):
                    raise _NoPorts(numbers)
            return replace(binding, ports=numbers)

        try:
            return await self._database.run(doing, bind if demand is None else bind_with_ports)
        except _NoPorts as error:
            return error.refused

    async def free_ports(self, ref: RuntimeRef) -> None:
        await self._write(f"giving the ports of {ref} back", ports.FREE, uid=ref.uid)

    async def abandoned_ports(self, unpublished_for: float) -> Sequence[RuntimeRef]:
        """Oldest first."""
        rows = await self._database.rows(
            "listing ports that nobody may need",
            ports.ABANDONED,
            {"installation": self._installation, "unpublished_for": unpublished_for},
        )
        return tuple(map(ports.life, rows))

    async def unpublished(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        rows = await self._database.rows(
            "listing archives without an object",
            catalogue.UNPUBLISHED,
            catalogue.page_parameters(self._installation, limit, after, of),
        )
        return tuple(map(catalogue.archive_facts, rows))

    async def published(self, sequence: int, object_name: str) -> None:
        await self._write(
            f"recording the object {object_name} of archive {sequence}",
            catalogue.PUBLISHED,
            sequence=sequence,
            object_name=object_name,
        )

    async def purged(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        """One that was never recorded as published is among them: a controller may have been killed
        between making its object and recording it."""
        rows = await self._database.rows(
            "listing purged archives that may have an object",
            catalogue.PURGED,
            catalogue.page_parameters(self._installation, limit, after, of),
        )
        return tuple(map(catalogue.archive_facts, rows))

    async def unpublish(self, sequence: int) -> None:
        await self._write(
            f"recording that archive {sequence} has no object any more", catalogue.UNPUBLISHED_NOW, sequence=sequence
        )

    async def force_release(self, ref: RuntimeRef, reason: str) -> None:
        await self._write(
            f"recording that {ref} was given up",
            _FORCE_RELEASE,
            **operations.identity_parameters(self._installation, ref),
            id=f"{ref.uid}/force-release",
            reason=reason,
        )

    async def record_retained(self, namespace_uid: NamespaceUid, object_name: str, retain: bool) -> None:
        await self._write(
            f"recording whether a purge spares {object_name}",
            catalogue.RETAIN,
            namespace_uid=namespace_uid,
            object_name=object_name,
            retain=retain,
        )

    async def _write(self, doing: str, statement: sql.SQL, **parameters: object) -> None:
        await self._database.write(doing, statement, {"installation": self._installation, **parameters})


class _NoPorts(Exception):
    """Takes the transaction back that it leaves."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


def _binding(ref: RuntimeRef, row: DictRow) -> Binding:
    return Binding(ref.uid, NodeName(row["node_name"]), NodeId(row["node_id"]))
