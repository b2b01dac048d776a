"""Operations and what they do to a runtime's row, as SQL: the state change and the operation's row are one statement.

Rows may come twice and in any order: an operation is completed once, what is there is never changed, and a runtime's
state is moved only by a newer operation of the same life and only along an edge of the table of phases, both compared
and set in the one statement. That the runtime had data (`snapshot_key`) is kept whatever the order, and of two snapshots
the later generation.
"""

from __future__ import annotations

from psycopg import sql

from perdure.api.names import InstallationId, NodeName, RuntimeRef
from perdure.ledger.leases import HELD
from perdure.reconcile.ports.journal import OperationFailing, OperationFinished, OperationStarted

_STARTED_VALUES = """
    %(installation)s, %(id)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, %(node_name)s,
    %(op)s, %(source)s, {fence}, %(before)s, %(image)s, %(correlation)s, to_timestamp(%(at)s),
    operation_month(%(installation)s, %(id)s, %(at)s)
"""
_STARTED_INSERT = """
INSERT INTO operations (
    installation, id, uid, namespace_uid, kind, namespace, name, node_name,
    op, source, fence, before, image, correlation, started_at, month
)
"""
_STARTED_CONFLICT = """
ON CONFLICT (installation, id, month) DO UPDATE
   SET op = COALESCE(operations.op, excluded.op), source = COALESCE(operations.source, excluded.source),
       before = COALESCE(operations.before, excluded.before), image = COALESCE(operations.image, excluded.image),
       correlation = COALESCE(operations.correlation, excluded.correlation),
       started_at = COALESCE(operations.started_at, excluded.started_at),
       fence = GREATEST(operations.fence, excluded.fence)
"""
STARTED = sql.SQL(
    _STARTED_INSERT
    + f"VALUES ({_STARTED_VALUES.format(fence='NULL')})"
    + _STARTED_CONFLICT
    + "WHERE operations.started_at IS NULL"
)
BEGIN = sql.SQL(
    f"WITH {HELD}, begun AS ({_STARTED_INSERT} SELECT {_STARTED_VALUES.format(fence='held.fence')} FROM held"
    f" {_STARTED_CONFLICT} WHERE operations.started_at IS NULL OR operations.finished_at IS NULL)"
    " SELECT EXISTS (SELECT FROM held) AS held"
)

_FINISHED = """
INSERT INTO operations (
    installation, id, uid, namespace_uid, kind, namespace, name, node_name,
    fence, after, outcome, error_code, message, image, snapshot_key, finished_at, month
)
SELECT %(installation)s, %(id)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, %(node_name)s,
       {fence}, %(after)s, %(outcome)s, %(error_code)s, %(message)s, %(image)s, %(snapshot_key)s, to_timestamp(%(at)s),
       operation_month(%(installation)s, %(id)s, %(at)s)
{source}
ON CONFLICT (installation, id, month) DO UPDATE
   SET after = excluded.after, outcome = excluded.outcome, error_code = excluded.error_code,
       message = excluded.message, image = COALESCE(excluded.image, operations.image),
       snapshot_key = excluded.snapshot_key, finished_at = excluded.finished_at
 WHERE operations.finished_at IS NULL
RETURNING id
"""

_MOVE_RUNTIME = """
INSERT INTO runtimes AS runtime (
    installation, uid, namespace_uid, kind, namespace, name, node_name,
    actual_state, numbered_from, operation_n, container, image, snapshot_key, released_at, released_by
)
SELECT %(installation)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, %(node_name)s,
       %(after)s, %(numbered_from)s, %(n)s, %(container)s, %(image)s, %(snapshot_key)s,
       CASE WHEN %(release)s THEN now() END, CASE WHEN %(release)s THEN %(id)s END
{source}
ON CONFLICT (installation, uid) DO UPDATE
   SET actual_state = CASE WHEN {newer} AND {edge} THEN excluded.actual_state ELSE runtime.actual_state END,
       refused = runtime.refused + CASE WHEN {newer} AND NOT {edge} THEN 1 ELSE 0 END,
       node_name = CASE WHEN {newer} THEN excluded.node_name ELSE runtime.node_name END,
       image = CASE WHEN {newer} THEN COALESCE(excluded.image, runtime.image) ELSE runtime.image END,
       snapshot_key = CASE WHEN {generation_known} >= {generation_told} THEN runtime.snapshot_key
                           ELSE COALESCE(excluded.snapshot_key, runtime.snapshot_key) END,
       container = excluded.container,
       numbered_from = CASE WHEN {newer} THEN excluded.numbered_from ELSE runtime.numbered_from END,
       operation_n = CASE WHEN {newer} THEN excluded.operation_n ELSE runtime.operation_n END,
       released_at = excluded.released_at, released_by = excluded.released_by,
       version = runtime.version + 1, updated_at = now()
 WHERE runtime.released_at IS NULL
"""
_GENERATION = "COALESCE(substring({row}.snapshot_key from '[0-9]+$')::numeric, -1)"
"""Generations only rise, and no key is used twice: which data is the newest does not hang on a clock."""
_NEWER = (
    "(runtime.numbered_from IS DISTINCT FROM excluded.numbered_from OR runtime.operation_n <= excluded.operation_n)"
)
"""As the node's journal counted; one that was lost has begun anew."""
_EDGE = """(runtime.actual_state IS NULL OR runtime.actual_state = excluded.actual_state OR EXISTS (
           SELECT FROM phase_edges AS edge
            WHERE edge.before = runtime.actual_state AND edge.after = excluded.actual_state))"""


def _moved(source: str) -> str:
    known, told = (_GENERATION.format(row=row) for row in ("runtime", "excluded"))
    return _MOVE_RUNTIME.format(newer=_NEWER, edge=_EDGE, generation_known=known, generation_told=told, source=source)


FINISHED = sql.SQL(f"WITH finished AS ({_FINISHED.format(fence='NULL', source='')})" + _moved("FROM finished"))
"""Without a lease: an operation that is there already, finished, moves nothing."""

FINISH = sql.SQL(
    f"WITH {HELD}, finished AS ({_FINISHED.format(fence='held.fence', source='FROM held')}),"
    f" moved AS ({_moved('FROM held')})"
    " SELECT EXISTS (SELECT FROM held) AS held"
)
"""Under a lease, and with the release of the life if it is over. A repetition moves the runtime's row again: the first
try may have closed the operation without the release."""


FAILING = sql.SQL("""
UPDATE operations SET error_code = %(error_code)s, message = %(message)s
 WHERE installation = %(installation)s AND id = %(id)s AND month = operation_month(%(installation)s, %(id)s, %(at)s)
   AND finished_at IS NULL
""")


def started_parameters(installation: InstallationId, row: OperationStarted, node: NodeName) -> dict[str, object]:
    return {
        **identity_parameters(installation, row.ref),
        "id": row.id,
        "node_name": node,
        "op": row.op,
        "source": row.source,
        "before": row.before,
        "image": row.image or None,
        "correlation": row.correlation or None,
        "at": row.at,
    }


def failing_parameters(installation: InstallationId, row: OperationFailing) -> dict[str, object]:
    return {
        "installation": installation,
        "id": row.id,
        "at": row.at,
        "error_code": row.error_code,
        "message": row.message,
    }


def finished_parameters(
    installation: InstallationId, row: OperationFinished, node: NodeName, *, release: bool
) -> dict[str, object]:
    return {
        **identity_parameters(installation, row.ref),
        "id": row.id,
        "node_name": node,
        "after": row.after,
        "outcome": row.outcome,
        "error_code": row.error_code or None,
        "message": row.message or None,
        "image": row.image or None,
        "snapshot_key": row.snapshot_key,
        "container": row.ref.container_id,
        "at": row.at,
        "numbered_from": row.numbered_from,
        "n": row.n,
        "release": release,
    }


def identity_parameters(installation: InstallationId, ref: RuntimeRef) -> dict[str, object]:
    return {
        "installation": installation,
        "uid": ref.uid,
        "namespace_uid": ref.namespace_uid,
        "kind": ref.kind,
        "namespace": ref.namespace,
        "name": ref.name,
    }
