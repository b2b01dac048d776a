"""The environment that end-to-end tests play on, and the stage that one file of them sets up there."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from tests.e2e.harness.api import Api
from tests.e2e.harness.ledger import Ledger
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.site import Site

from perdure.api.names import LEASE_NAMESPACE, Kind
from rig.clients import Kubectl
from rig.containerd import Containerd
from rig.environment import Environment


@dataclass(slots=True)
class Machine:
    """An environment, and what tests put on it."""

    environment: Environment
    scratch: Path
    """For folders of sites and logs: short, on the engine's disk."""
    api: Api

    @property
    def kubeconfig(self) -> Path:
        return self.environment.control_plane.admin_kubeconfig

    @property
    def images(self) -> Path:
        return self.scratch / "images"

    def kubectl(self, namespace: str | None = None) -> Kubectl:
        return Kubectl(self.kubeconfig, namespace)

    def new_site(self, engine: Containerd | None = None, *, dual_stack: bool = False) -> Site:
        """A node's worth of places on this machine's engine, or on another one."""
        name = f"n{uuid.uuid4().hex[:8]}"
        site = Site(name, engine or self.environment.engine, self.scratch / name, dual_stack)
        site.prepare(self.images)
        return site

    def new_ledger(self) -> Ledger:
        """An empty database."""
        name = f"e2e_{uuid.uuid4().hex[:12]}"
        url = self.environment.database.url
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return Ledger(url.replace("/perdure?", f"/{name}?"))

    def forget_nodes(self) -> None:
        """No node and no leader is known any more: nothing of one test's is chosen, or waited for, in the next."""
        self.kubectl()("delete", "runtimenodes", "--all", "--wait=false")
        self.forget_leader()

    def forget_leader(self) -> None:
        """A leader that was killed need not be waited for; node Leases are written again by who lives."""
        self.kubectl(LEASE_NAMESPACE)("delete", "leases", "--all", "--ignore-not-found")


@dataclass(slots=True)
class Stage:
    """The processes and places that one file of tests plays on."""

    machine: Machine
    site: Site
    ledger: Ledger
    operator: Operator
    """`standalone`, or the agent where the controller is a process of its own."""
    controller: Operator | None = None

    def runtime(self, kubectl: Kubectl, name: str, kind: Kind = Kind.BOT, **spec: Any) -> Runtime:
        return Runtime(kubectl, self.machine.api, self.site, name, kind, spec)


@contextmanager
def standalone(machine: Machine, new_operator: Callable[..., Operator], *, dual_stack: bool = False) -> Iterator[Stage]:
    """`perdure standalone`, ready, on a site and a ledger of its own; nothing of it is left afterwards."""
    site, ledger = machine.new_site(dual_stack=dual_stack), machine.new_ledger()
    operator = new_operator("standalone", ledger, site)
    operator.start()
    yield Stage(machine, site, ledger, operator)
    operator.stop()
    site.clear()
    machine.forget_nodes()
