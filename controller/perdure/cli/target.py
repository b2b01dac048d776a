"""KIND/NAME and namespaces on the command line, as kubectl's users know them. Called by commands about one runtime."""

from __future__ import annotations

import re

import click

from perdure.api import names
from perdure.api.names import Kind

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

_KINDS = {
    alias: kind for kind in Kind for alias in (kind.short, kind.plural, kind.value.lower(), f"{kind.value.lower()}s")
}
_KNOWN_KINDS = ", ".join(f"{kind.short} ({kind.value})" for kind in Kind)


def parse_namespace(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not DNS_LABEL.fullmatch(value):
        raise click.BadParameter(f"{value!r} cannot be a namespace: 1 to 63 of a-z, 0-9 and '-'")
    return value


def parse_target(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[Kind, str] | None:
    """`br/ada`, `botruntime/ada`, `BotRuntime/ada`, or as `kubectl -o name` prints it: `botruntime.perdure.dev/ada`."""
    if value is None:
        return None
    kind, _slash, name = value.partition("/")
    known = _KINDS.get(kind.strip().lower().removesuffix(f".{names.GROUP}"))
    if known is None or not name.strip():
        raise click.BadParameter(
            f"{value!r} is not KIND/NAME such as br/ada or gameruntime/castle; kinds: {_KNOWN_KINDS}"
        )
    if not DNS_LABEL.fullmatch(name):
        raise click.BadParameter(f"{name!r} cannot be a runtime's name: 1 to 63 of a-z, 0-9 and '-', such as ada")
    return known, name
