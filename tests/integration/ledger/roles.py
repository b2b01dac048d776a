"""Roles with the rights that docs/ledger.md gives them, and the page's other statements: tests do what readers do."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ledger.md"
ROLES = ("controller", "agent", "reader")


def documented_sql(beginning: str) -> str:
    """The one block of SQL of the page that begins so."""
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(beginning)]
    return str(found)


@dataclass(frozen=True, slots=True)
class Roles:
    """Connection strings of one database for fresh roles."""

    controller: str
    agent: str
    reader: str
    names: tuple[str, ...]

    def grant(self) -> None:
        """As the page says, by the controller's role."""
        statements = documented_sql("GRANT")
        for role, name in zip(ROLES, self.names, strict=True):
            statements = statements.replace(f"perdure_{role}", name)
        with psycopg.connect(self.controller, autocommit=True) as connection:
            connection.execute(statements.encode())


@contextmanager
def documented_roles(url: str) -> Iterator[Roles]:
    """Fresh roles, the first of which owns the database of `url` (a superuser's); dropped afterwards."""
    token = uuid.uuid4().hex[:8]
    names = tuple(f"{role}_{token}" for role in ROLES)
    with psycopg.connect(url, autocommit=True) as superuser:
        for name in names:
            superuser.execute(f"CREATE ROLE {name} LOGIN".encode())
        database = superuser.info.dbname
        superuser.execute(f'ALTER DATABASE "{database}" OWNER TO {names[0]}'.encode())
        try:
            controller, agent, reader = (url.replace("postgres@", f"{name}@") for name in names)
            yield Roles(controller, agent, reader, names)
        finally:
            superuser.execute(f'ALTER DATABASE "{database}" OWNER TO postgres'.encode())
            superuser.execute(f"DROP OWNED BY {', '.join(names)} CASCADE".encode())
            superuser.execute(f"DROP ROLE {', '.join(names)}".encode())
