"""Which ids a container runs as: `uid[:gid]` or names from the file system that it will run on.

Pure: the caller reads /etc/passwd and /etc/group. Formats: passwd(5), group(5); lines that are not in them are skipped,
as the C library does.
"""

from __future__ import annotations

from dataclasses import dataclass

from perdure.api.conditions import Reason
from perdure.engine.oci.schema import User
from perdure.reconcile.ports.errors import EngineRefused

MAX_ID = 2**31 - 1
"""Largest uid or gid that runc takes (libcontainer/user)."""


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: frozenset[str]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID else None


def _accounts(passwd: bytes) -> list[_Account]:
    found = []
    for line in passwd.decode(errors="replace").splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and not line.startswith("#"):
            uid, gid = _number(parts[2]), _number(parts[3])
            if uid is not None and gid is not None:
                found.append(_Account(parts[0], uid, gid))
    return found


def _groups(group: bytes) -> list[_Group]:
    found = []
    for line in group.decode(errors="replace").splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and not line.startswith("#"):
            gid = _number(parts[2])
            if gid is not None:
                found.append(_Group(parts[0], gid, frozenset(filter(None, parts[3].split(",")))))
    return found


def _unknown(what: str, name: str, where: str) -> EngineRefused:
    return EngineRefused(
        f"cannot make the container: {what} {name!r} is not in the image's {where}; "
        "use a number, or add it to the image",
        reason=Reason.USER_NOT_FOUND,
        user_error=True,
    )


def resolve_user(wanted: str, *, passwd: bytes, group: bytes) -> User:
    """The ids for `wanted` (`user`, `uid`, `user:group`, `uid:gid`; empty is root).

    Without a group: the account's own, or 0 for a number that is no account. Supplementary groups are those that list
    the account, unless a group was named. A number is looked up as a number. Raises `EngineRefused(UserNotFound)`.
    """
    user_part, separator, group_part = wanted.partition(":")
    user_part = user_part or "0"
    accounts = _accounts(passwd)
    uid = _number(user_part)
    if uid is None:
        account = next((a for a in accounts if a.name == user_part), None)
        if account is None:
            raise _unknown("user", user_part, "/etc/passwd")
    else:
        account = next((a for a in accounts if a.uid == uid), None)
    groups = _groups(group)
    if separator and group_part:
        gid = _number(group_part)
        if gid is None:
            named = next((g for g in groups if g.name == group_part), None)
            if named is None:
                raise _unknown("group", group_part, "/etc/group")
            gid = named.gid
        extra: set[int] = set()
    else:
        gid = account.gid if account else 0
        extra = {g.gid for g in groups if account and account.name in g.members}
    ids = account.uid if account else uid
    if ids is None:
        raise _unknown("user", user_part, "/etc/passwd")
    return User(uid=ids, gid=gid, additional_gids=tuple(sorted(extra | {gid})))
