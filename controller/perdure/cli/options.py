"""Options that several commands share: named, described and validated once. Imports click only.

Every option is also an environment variable, `PERDURE_` and its name; the command line wins.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perdure.cli.target import parse_namespace

if TYPE_CHECKING:
    from perdure.plan.allotment import PortRange

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

OUTPUTS = ("table", "wide", "json")

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_ENGINE_NAMESPACE = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")


def option(*flags: str, envvar: list[str] | None = None, **settings: Any) -> Decorator[Any]:
    """`click.option` with its `PERDURE_*` variable, both shown in `--help`. That of `--wait/--no-wait` is PERDURE_WAIT, 0
    or 1."""
    long = next(flag for flag in flags if flag.startswith("--"))
    own = f"PERDURE_{long[2:].partition('/')[0].upper().replace('-', '_')}"
    settings.setdefault("show_default", True)
    return click.option(*flags, envvar=[own, *(envvar or [])], show_envvar=True, **settings)


def together(*options: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator; `--help` shows them in this order."""

    def decorate(function: Function) -> Function:
        return functools.reduce(lambda inner, apply: apply(inner), reversed(options), function)

    return decorate


def _label(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not _DNS_LABEL.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} cannot be a node's name: it becomes the value of a label, so it has at most 63 of a-z, 0-9, "
            "'-' and '.', and begins and ends with a letter or digit. Choose another with --node-name."
        )
    return value


def _engine_namespace(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if len(value) > 76 or not _ENGINE_NAMESPACE.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no namespace of containerd: at most 76 letters and digits, with . _ -")
    return value


def _cgroup(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/") or value.strip("/") == "":
        raise click.BadParameter(
            f"{value!r} is no cgroup such as /perdure: it begins with / and is not the root itself"
        )
    return value.rstrip("/")


def _cpu(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _quantity(value, "parse_millicores")


def _memory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _quantity(value, "parse_bytes")


def _quantity(value: str, parse: str) -> int:
    from perdure.api import quantity

    try:
        amount: int = getattr(quantity, parse)(value)
    except quantity.InvalidQuantity as error:
        raise click.BadParameter(str(error)) from error
    return amount


def _port_range(_ctx: click.Context, _param: click.Parameter, value: str) -> PortRange:
    from perdure.plan.allotment import PortRange

    found = _PORT_RANGE.fullmatch(value)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 0 < first <= last < 2**16:
        raise click.BadParameter(f"{value!r} is no range of ports such as 7000-8000, within 1-65535")
    return PortRange(first, last)


def machine_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine_millicores() -> int:
    """All of this machine, in thousandths of a core."""
    return (os.cpu_count() or 1) * 1000


def machine_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)

output = option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", help="How to print it; json has every field."
)

namespace = option(
    "-n",
    "--namespace",
    default="default",
    callback=parse_namespace,
    help="Of the runtimes. Contexts of a kubeconfig are not looked at: what is read is the ledger.",
)
all_namespaces = option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")

cluster = option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    envvar=["KUBECONFIG"],
    metavar="PATH",
    help="Default: ~/.kube/config, else the cluster this runs in.",
)

database = together(
    option(
        "--database-url",
        metavar="URL",
        help="The ledger: postgresql://… It holds a password: use the variable or --database-url-file, because the "
        "arguments of a process can be seen by everybody on the machine.",
    ),
    option(
        "--database-url-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file with the URL in it, such as a mounted Secret.",
    ),
)

common = together(
    cluster,
    database,
    option("--http-address", default="127.0.0.1:9464", metavar="HOST:PORT", help="For /metrics, /livez and /readyz."),
    option(
        "--resync-seconds",
        type=click.FloatRange(min=1.0),
        default=300.0,
        help="How often everything is listed again, in case a watch lost something.",
    ),
    option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False), default="info"
    ),
    option(
        "--log-format",
        type=click.Choice(["auto", "console", "json"], case_sensitive=False),
        default="auto",
        help="auto: console on a terminal, json elsewhere.",
    ),
)

controller = together(
    option(
        "--port-range",
        default="7000-8000",
        metavar="FIRST-LAST",
        callback=_port_range,
        help="Ports of each node that are given to runtimes' ports with policy Dynamic. Numbers that were given stay.",
    ),
    option(
        "--history-days",
        type=click.IntRange(90, 36_500),
        default=90,
        help="For how long operations are kept in the ledger; they are dropped by whole months. What is known of runtimes "
        "and archives is kept for ever.",
    ),
)

state_dir = option(
    "--state-dir", type=_FOLDER, default="/var/lib/perdure", help="The journal and this node's id: keep it."
)

node = together(
    option(
        "--node-name",
        default=lambda: socket.gethostname().lower(),
        show_default="host name",
        callback=_label,
        help="This node's RuntimeNode.",
    ),
    option(
        "--containerd-address",
        type=click.Path(path_type=Path, resolve_path=True),
        default="/run/containerd/containerd.sock",
        help="Its socket.",
    ),
    option(
        "--engine-namespace",
        default="perdure",
        callback=_engine_namespace,
        help="The namespace of containerd that is Perdure's alone.",
    ),
    option("--runc-root", type=_FOLDER, help="Where runc keeps its state. Default: as containerd is configured."),
    option("--cgroup-parent", default="/perdure", callback=_cgroup, help="Runtimes' cgroups are made below it."),
    state_dir,
    option("--run-dir", type=_FOLDER, default="/run/perdure", help="What may be gone after a reboot."),
    option(
        "--archive-dir",
        type=_FOLDER,
        help="Where archives of data are kept. Default: archives in the state folder; another disk is better.",
    ),
    option(
        "--cni-conf-dir",
        type=_FOLDER,
        default="/etc/cni/net.d",
        help="Network configurations. While it holds one, runtimes that do not say otherwise get a network.",
    ),
    option(
        "--cni-network",
        metavar="NAME",
        help="The network to use: one that no Pods are on. Default: the first in the folder.",
    ),
    option(
        "--cni-bin-dir",
        "cni_bin_dirs",
        type=_FOLDER,
        multiple=True,
        default=["/opt/cni/bin", "/usr/lib/cni"],
        help="Where network plugins are; may be given several times.",
    ),
    option("--allocatable-cpu", metavar="QUANTITY", callback=_cpu, help="Offered to runtimes. Default: the machine's."),
    option(
        "--allocatable-memory",
        metavar="QUANTITY",
        callback=_memory,
        help="Offered to runtimes. Default: the machine's.",
    ),
    option(
        "--max-concurrent-starts",
        type=click.IntRange(min=1),
        help="Containers that are started at the same time. Default: 2 per core; more only makes each of them slower.",
    ),
)
