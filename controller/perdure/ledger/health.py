"""Health events as SQL: rows are only ever inserted, and one that is there already stays as it is."""

from __future__ import annotations

from psycopg import sql

from perdure.api.names import InstallationId, NodeName
from perdure.ledger.operations import identity_parameters
from perdure.reconcile.ports.journal import HealthRow

TOLD = sql.SQL("""
INSERT INTO health_events (
    installation, id, uid, namespace_uid, kind, namespace, name, node_name, container,
    event, probe, exit_code, message, happened_at, month
)
VALUES (
    %(installation)s, %(id)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, %(node_name)s,
    %(container)s, %(event)s, %(probe)s, %(exit_code)s, %(message)s, to_timestamp(%(at)s),
    health_month(%(installation)s, %(id)s, %(at)s)
)
ON CONFLICT (installation, id, month) DO NOTHING
""")


def parameters(installation: InstallationId, row: HealthRow, node: NodeName) -> dict[str, object]:
    return {
        **identity_parameters(installation, row.ref),
        "id": row.id,
        "node_name": node,
        "container": row.ref.container_id,
        "event": row.kind,
        "probe": row.probe,
        "exit_code": row.code,
        "message": row.message or None,
        "at": row.at,
    }
