"""What the end-to-end tests share: an environment of their own per worker, and Perdure's real processes on it.

The environment is not the one of `env`: an operator acts on every runtime of its cluster, so tests that make runtimes
without one would meet it; and these tests kill and restart API server, engine and database.
"""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness.api import Api
from tests.e2e.harness.ledger import Ledger
from tests.e2e.harness.machine import Machine, Stage, standalone
from tests.e2e.harness.processes import Operator, variables
from tests.e2e.harness.site import Site

from perdure.api.names import Kind
from rig.clients import Kubectl
from rig.environment import Environment

_RUNNING: list[Operator] = []
"""Processes of the current test and module, whose logs explain a failure."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--e2e-environment",
        type=Path,
        metavar="DIR",
        help="keep the end-to-end tests' environment in DIR and leave it up, for the next run (not with -n)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file of these tests shares processes, so it stays on one worker. First: xdist reads the groups in this hook."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            item.add_marker(pytest.mark.root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the processes' logs with a failure."""
    report = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        for operator in _RUNNING:
            report.sections.append((f"log of perdure {operator.role} {operator.name}", operator.explain()))
    return report


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A control plane, an engine and a database for the end-to-end tests of this worker."""
    kept: Path | None = request.config.getoption("--e2e-environment")
    directory = kept.resolve() if kept else Path(tempfile.mkdtemp(prefix="perdure-e2e-", dir="/var/tmp"))
    environment = Environment(directory)
    try:
        environment.up()
        scratch = Path(tempfile.mkdtemp(prefix="s", dir=directory))
        yield Machine(environment, scratch, Api.of(environment.control_plane))
    finally:
        if kept is None:
            environment.down()
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def new_operator(machine: Machine) -> Iterator[Callable[..., Operator]]:
    """Makes processes of Perdure, not started yet; whatever still runs after the file's tests is ended."""
    made: list[Operator] = []

    def make(role: str, ledger: Ledger, site: Site | None = None, **options: str) -> Operator:
        name = site.name if site is not None else uuid.uuid4().hex[:8]
        given = variables(machine.kubeconfig, ledger.url, site.options() if site is not None else {})
        operator = Operator(role, name, machine.environment.run_directory, given | options)
        made.append(operator)
        _RUNNING.append(operator)
        return operator

    yield make
    for operator in made:
        operator.stop()
        _RUNNING.remove(operator)


@pytest.fixture(scope="module")
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    """`perdure standalone`, ready, on a site and a ledger of this file's own."""
    with standalone(machine, new_operator) as stage:
        yield stage


@pytest.fixture
def namespace(machine: Machine) -> Iterator[str]:
    """A Kubernetes namespace of the test's own. What the test left in it is taken down without asking anyone."""
    name = f"e2e-{uuid.uuid4().hex[:12]}"
    machine.kubectl()("create", "namespace", name)
    yield name
    machine.kubectl(name).delete_objects()
    machine.kubectl()("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def kubectl(machine: Machine, namespace: str) -> Kubectl:
    """`kubectl` in the test's own namespace, as an administrator."""
    return machine.kubectl(namespace)


@pytest.fixture(params=list(Kind), ids=[kind.short for kind in Kind])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both kinds: whatever is promised is promised for both."""
    kind: Kind = request.param
    return kind
