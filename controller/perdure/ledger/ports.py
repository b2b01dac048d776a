"""Ports on nodes, as SQL and as the transactions around it; used by both ledgers.

Whoever changes ports of a node locks that node's row of `port_ranges` first, so each decision is taken on what is
reserved; the primary key of `ports` holds whatever happens. A transaction that is cut off leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg import sql
from psycopg.rows import DictRow

from perdure.api.names import InstallationId, Kind, NamespaceUid, RuntimeRef, Uid
from perdure.ledger.database import Connection
from perdure.plan.allotment import (
    Allotment,
    Exhausted,
    NodePort,
    NodePorts,
    PortDemand,
    PortRange,
    Reservation,
    Taken,
    Transport,
    allot,
    redraw,
    refusal_of_exhausted,
    refusal_of_taken,
)
from perdure.plan.binding import Refused
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import Binding

_LOCK_WITH_RANGE = sql.SQL("""
INSERT INTO port_ranges AS known (installation, node_id, first_port, last_port)
VALUES (%(installation)s, %(node_id)s, %(first)s, %(last)s)
ON CONFLICT (installation, node_id) DO UPDATE SET first_port = excluded.first_port, last_port = excluded.last_port
RETURNING latest
""")

_LOCK = sql.SQL("""
SELECT first_port, last_port, latest FROM port_ranges
 WHERE installation = %(installation)s AND node_id = %(node_id)s FOR UPDATE
""")

_RESERVED = sql.SQL("""
SELECT protocol, port, uid, name, static, published_at IS NOT NULL AS published FROM ports
 WHERE installation = %(installation)s AND node_id = %(node_id)s
""")

_PUT = sql.SQL("""
INSERT INTO ports (installation, node_id, protocol, port, uid, name, static)
SELECT %(installation)s, %(node_id)s, protocol, port, %(uid)s, name, static
  FROM unnest(%(protocols)s::text[], %(ports)s::integer[], %(names)s::text[], %(statics)s::boolean[])
       AS wanted (protocol, port, name, static)
ON CONFLICT (installation, node_id, protocol, port) DO UPDATE SET name = excluded.name, static = excluded.static
 WHERE ports.uid = excluded.uid
RETURNING port
""")

_DROP = sql.SQL("""
DELETE FROM ports USING unnest(%(protocols)s::text[], %(ports)s::integer[]) AS dropped (protocol, port)
 WHERE installation = %(installation)s AND node_id = %(node_id)s AND uid = %(uid)s
   AND ports.protocol = dropped.protocol AND ports.port = dropped.port
""")

_DREW = sql.SQL("""
UPDATE port_ranges SET latest = %(latest)s WHERE installation = %(installation)s AND node_id = %(node_id)s
""")

_MOVE = sql.SQL("""
UPDATE ports SET port = %(port)s, reserved_at = now()
 WHERE installation = %(installation)s AND node_id = %(node_id)s AND uid = %(uid)s AND name = %(name)s
   AND port = %(taken)s AND NOT static AND published_at IS NULL
""")

PUBLISH = sql.SQL("""
WITH shown AS (
    SELECT * FROM unnest(%(names)s::text[], %(ports)s::integer[]) AS shown (name, port)
), held AS (
    SELECT ports.protocol, ports.port, ports.name FROM ports JOIN shown USING (name, port)
     WHERE installation = %(installation)s AND node_id = %(node_id)s AND uid = %(uid)s
       FOR UPDATE OF ports
), marked AS (
    UPDATE ports SET published_at = now() FROM held
     WHERE installation = %(installation)s AND node_id = %(node_id)s AND ports.protocol = held.protocol
       AND ports.port = held.port AND published_at IS NULL
)
SELECT (SELECT count(DISTINCT name) FROM held) = (SELECT count(*) FROM shown) AS held
""")

FREE = sql.SQL("DELETE FROM ports WHERE installation = %(installation)s AND uid = %(uid)s")

ABANDONED = sql.SQL("""
SELECT life.uid, life.namespace_uid, life.kind, life.namespace, life.name
  FROM (SELECT uid FROM ports WHERE installation = %(installation)s
         GROUP BY uid
        HAVING bool_and(published_at IS NULL AND reserved_at <= now() - make_interval(secs => %(unpublished_for)s))
         UNION
        SELECT uid FROM ports JOIN runtimes AS over USING (installation, uid)
         WHERE installation = %(installation)s
           AND (over.released_at IS NOT NULL OR over.force_released_at IS NOT NULL)) AS found
  JOIN runtimes AS life ON life.installation = %(installation)s AND life.uid = found.uid
 ORDER BY life.created_at, life.uid
""")

_NAME_OF = sql.SQL("""
SELECT kind, namespace, name FROM runtimes WHERE installation = %(installation)s AND uid = %(uid)s
""")


async def reserve(
    connection: Connection, installation: InstallationId, binding: Binding, demand: PortDemand
) -> tuple[tuple[str, int], ...] | Refused:
    """The numbers of all ports of a runtime on the node that it is bound to: those that it has, and new ones.

    To be called in a transaction, which the caller takes back when the answer is a refusal.
    """
    keys: dict[str, object] = {"installation": installation, "node_id": binding.node_id, "uid": binding.uid}
    within = {"first": demand.within.first, "last": demand.within.last}
    locked = await _only(connection, _LOCK_WITH_RANGE, keys | within)
    node = _node_ports(await _all(connection, _RESERVED, keys), binding.uid, locked["latest"])
    answer = allot(demand, node)
    if isinstance(answer, Taken):
        holder = await _name_of(connection, keys, answer.by) if answer.by is not None else None
        return refusal_of_taken(answer, binding.node_name, holder)
    if isinstance(answer, Exhausted):
        return refusal_of_exhausted(answer.port.name, demand.within, binding.node_name)
    await _write(connection, keys, answer, node.latest)
    return answer.numbers


async def _write(connection: Connection, keys: Mapping[str, object], allotment: Allotment, latest: int) -> None:
    if allotment.drop:
        await connection.execute(_DROP, {**keys, **_columns(allotment.drop)})
    if allotment.put:
        reservations = list(allotment.put.values())
        more = {
            "names": [reservation.name for reservation in reservations],
            "statics": [reservation.static for reservation in reservations],
        }
        written = await _all(connection, _PUT, {**keys, **_columns(allotment.put), **more})
        if len(written) != len(allotment.put):
            raise LedgerUnavailable(
                f"reserving ports of the runtime with uid {keys['uid']}: another one took a number in between although "
                "the node's row of port_ranges was locked; nothing was written, and it is tried again"
            )
    if allotment.latest != latest:
        await connection.execute(_DREW, {**keys, "latest": allotment.latest})


async def replace(
    connection: Connection, installation: InstallationId, binding: Binding, name: str, taken: int
) -> int | Refused | None:
    """See `perdure.plan.allotment.redraw`. To be called in a transaction."""
    keys: dict[str, object] = {"installation": installation, "node_id": binding.node_id, "uid": binding.uid}
    locked = await (await connection.execute(_LOCK, keys)).fetchone()
    if locked is None:
        return None
    node = _node_ports(await _all(connection, _RESERVED, keys), binding.uid, locked["latest"])
    within = PortRange(locked["first_port"], locked["last_port"])
    answer = redraw(name, taken, node, within, binding.node_name)
    if isinstance(answer, int) and answer != node.number_of(name):
        await connection.execute(_MOVE, {**keys, "name": name, "taken": taken, "port": answer})
        await connection.execute(_DREW, {**keys, "latest": answer})
    return answer


def life(row: DictRow) -> RuntimeRef:
    """A row of `ABANDONED`."""
    return RuntimeRef(
        Kind(row["kind"]), row["namespace"], row["name"], Uid(row["uid"]), NamespaceUid(row["namespace_uid"])
    )


def _node_ports(rows: Iterable[DictRow], uid: Uid, latest: int) -> NodePorts:
    mine: dict[NodePort, Reservation] = {}
    others: dict[NodePort, Uid] = {}
    published = set()
    for row in rows:
        at = NodePort(Transport(row["protocol"]), row["port"])
        if row["uid"] == uid:
            mine[at] = Reservation(row["name"], row["static"])
            if row["published"]:
                published.add(row["name"])
        else:
            others[at] = Uid(row["uid"])
    return NodePorts(mine, others, latest, frozenset(published))


def _columns(ports: Iterable[NodePort]) -> dict[str, object]:
    listed = list(ports)
    return {"protocols": [at.transport.value for at in listed], "ports": [at.number for at in listed]}


async def _name_of(connection: Connection, keys: Mapping[str, object], uid: Uid) -> str | None:
    row = await (await connection.execute(_NAME_OF, {**keys, "uid": uid})).fetchone()
    return None if row is None else f"{row['kind']} {row['namespace']}/{row['name']}"


async def _only(connection: Connection, statement: sql.SQL, parameters: Mapping[str, object]) -> DictRow:
    (row,) = await _all(connection, statement, parameters)
    return row


async def _all(connection: Connection, statement: sql.SQL, parameters: Mapping[str, object]) -> list[DictRow]:
    return await (await connection.execute(statement, parameters)).fetchall()
