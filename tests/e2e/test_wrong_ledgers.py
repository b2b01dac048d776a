"""Processes that are started with a ledger that is not for them: they name what is wrong, touch nothing, and go on by
themselves once it is mended."""

import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.e2e.harness.ledger import Ledger
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.site import Site
from tests.e2e.harness.waiting import eventually

NEWER = "INSERT INTO perdure_migrations (version, name, sha256) VALUES (9999, 'later', 'x')"
NO_LONGER = "DELETE FROM perdure_migrations WHERE version = 9999"


@pytest.fixture(scope="module")
def site(machine: Machine) -> Iterator[Site]:
    site = machine.new_site()
    yield site
    site.clear()


@pytest.fixture
def start(
    machine: Machine, site: Site, new_operator: Callable[..., Operator], request: pytest.FixtureRequest
) -> Iterator[Callable[[str, str], Operator]]:
    """Starts a process of a role with a database URL, and does not wait for it."""
    started: list[Operator] = []

    def make(role: str, url: str) -> Operator:
        operator = new_operator(role, Ledger(url), site if role == "agent" else None)
        started.append(operator)
        operator.start(ready=False)
        return operator

    yield make
    for operator in started:
        operator.stop()
    machine.forget_nodes()


@pytest.fixture(scope="module")
def ledger(machine: Machine, new_operator: Callable[..., Operator]) -> Ledger:
    """Of the right schema, as a controller leaves it."""
    ledger = machine.new_ledger()
    controller = new_operator("controller", ledger)
    controller.start()
    controller.stop()
    machine.forget_leader()
    return ledger


def names(operator: Operator, words: str) -> None:
    """Wait until /readyz says so of the ledger."""

    def told() -> str:
        _code, body = operator.answer("readyz")
        return json.loads(body)["checks"]["ledger"].get("detail", "") if body.startswith("{") else ""

    eventually(told, f"it says: {words}", lambda detail: words in detail)


@pytest.mark.parametrize("role", ["controller", "agent"])
def test_a_newer_schema_is_refused_said_and_left_alone(
    ledger: Ledger, start: Callable[[str, str], Operator], role: str
) -> None:
    ledger.execute(NEWER)
    try:
        operator = start(role, ledger.url)
        names(operator, "it is 9999, and this program knows")
    finally:
        ledger.execute(NO_LONGER)
    operator.wait_ready()
    assert operator.starts == 1


def test_an_agent_waits_for_the_schema_and_is_told_who_makes_it(
    machine: Machine, start: Callable[[str, str], Operator]
) -> None:
    agent = start("agent", machine.new_ledger().url)
    names(agent, "start the controller of this version first")


def test_a_role_without_rights_is_told_what_it_lacks_and_goes_on_when_it_has_it(
    ledger: Ledger, start: Callable[[str, str], Operator]
) -> None:
    role = f"poor_{secrets.token_hex(4)}"
    ledger.execute(f"CREATE ROLE {role} LOGIN")
    try:
        agent = start("agent", ledger.url.replace("postgres@", f"{role}@"))
        names(agent, "permission denied for table perdure_migrations; grant the role")
        ledger.execute(f"GRANT SELECT ON perdure_migrations, ledger_identity, leases, archives TO {role}")
        agent.wait_ready()
        agent.stop()
    finally:
        ledger.execute(f"DROP OWNED BY {role}")
        ledger.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("role", ["controller", "agent"])
def test_tls_that_is_refused_is_named_without_the_password(start: Callable[[str, str], Operator], role: str) -> None:
    with server_without_tls() as port:
        operator = start(role, f"postgresql://perdure:hunter2@127.0.0.1:{port}/perdure?sslmode=require")
        names(operator, "sslmode")
        assert "hunter2" not in operator.log()


@pytest.mark.parametrize("role", ["controller", "agent"])
def test_a_url_that_cannot_be_read_ends_the_process_with_one_line(
    machine: Machine, site: Site, role: str, new_operator: Callable[..., Operator]
) -> None:
    operator = new_operator(role, Ledger("hunter2 is no url"), site if role == "agent" else None)
    operator.start(ready=False)
    eventually(operator.identity, "it ended", lambda process: process is None)
    last = operator.log().strip().splitlines()[-1]
    assert "it is neither postgresql://" in last
    assert "hunter2" not in operator.log()


@contextmanager
def server_without_tls() -> Iterator[int]:
    """As a PostgreSQL without TLS answers an SSLRequest: N (protocol-flow.html)."""

    def refuse() -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return  # closed: the test is over
            with connection:
                connection.recv(8)
                connection.sendall(b"N")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, daemon=True).start()
        yield listener.getsockname()[1]
