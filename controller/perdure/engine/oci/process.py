"""What a container runs: argument vector, environment and working directory, with the meaning they have in a Pod."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from perdure.api.conditions import Reason
from perdure.reconcile.ports.errors import EngineRefused

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def argument_vector(
    *, entrypoint: Sequence[str], cmd: Sequence[str], command: Sequence[str], args: Sequence[str]
) -> tuple[str, ...]:
    """`command` replaces the image's entrypoint *and* its cmd; `args` replaces its cmd.

    Source: Kubernetes, "Define a Command and Arguments for a Container". Raises `EngineRefused` if nothing is left.
    """
    argv = (*command, *args) if command else (*entrypoint, *(args or cmd))
    if not argv or not argv[0]:
        raise EngineRefused(
            "cannot make the container: neither the image nor the spec says what to run; set `command`",
            reason=Reason.INVALID_SPEC,
            user_error=True,
        )
    return argv


def expand(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """`$(NAME)` replaced by a variable's value, `$$` by `$`; an unknown name stays as it is, as in a Pod's command."""

    def replaced(found: re.Match[str]) -> str:
        return "$" if found[1] is None else values.get(found[1], found[0])

    return tuple(_REFERENCE.sub(replaced, word) for word in words)


def environment(
    *, image_env: Sequence[str], given: Sequence[tuple[str, str]], hostname: str, timezone: str
) -> tuple[str, ...]:
    """Variables in order: defaults, the image's, the spec's; a later one of the same name wins in its first place."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if timezone:
        merged["TZ"] = timezone
    for entry in image_env:
        name, _, value = entry.partition("=")
        if name:
            merged[name] = value
    merged.update(given)
    for name, value in merged.items():
        if "\0" in name or "\0" in value or "=" in name or not name:
            raise EngineRefused(
                f"cannot make the container: environment variable {name[:60]!r} has a name or value that the kernel "
                "cannot take (NUL, or '=' in the name); correct `env`",
                reason=Reason.INVALID_SPEC,
                user_error=True,
            )
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_directory(given: str | None, image: str) -> str:
    """The spec's, else the image's, else the root. Raises `EngineRefused` for a relative one in the spec."""
    if given and not given.startswith("/"):
        raise EngineRefused(
            f"cannot make the container: workingDir {given!r} is not absolute",
            reason=Reason.INVALID_SPEC,
            user_error=True,
        )
    chosen = given or image or "/"
    return chosen if chosen.startswith("/") else f"/{chosen}"
