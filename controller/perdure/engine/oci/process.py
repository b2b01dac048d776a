"""What a container runs: argument vector, environment and working directory, with the meaning they have in a Pod."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from perdure.api.conditions import Reason
from perdure.reconcile.ports.errors import EngineRefused
from perdure.reconcile.ports.exec_limits import (
    POINTER_BYTES,
    STRING_BYTES,
    TOTAL_BYTES,
    too_long,
    too_much,
    variable_bytes,
    word_bytes,
)

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
        raise _invalid("neither the image nor the spec says what to run; set `command`")
    return argv


def expand(words: Sequence[str], values: Mapping[str, str], *, field: str) -> tuple[str, ...]:
    """`$(NAME)` replaced by a variable's value, `$$` by `$`; an unknown name stays as it is, as in a Pod's command.

    What comes out is measured before it is made: a few bytes may stand for a GiB. Raises `EngineRefused` for what the
    kernel would not take, named by the `field` of the spec that the words are from.
    """
    sizes = {name: len(value.encode()) for name, value in values.items()}
    total = 0
    for at, word in enumerate(words):
        size = word_bytes(word) + sum(
            (1 if found[1] is None else sizes.get(found[1], len(found[0]))) - len(found[0])
            for found in _REFERENCE.finditer(word)
        )
        if size > STRING_BYTES:
            raise _invalid(too_long(f"{field}[{at}] with its $(NAME) replaced", size))
        total += size + POINTER_BYTES
        if total > TOTAL_BYTES:
            raise _invalid(too_much(f"the words of {field} up to {field}[{at}] take {total} bytes"))

    def replaced(found: re.Match[str]) -> str:
        return "$" if found[1] is None else values.get(found[1], found[0])

    return tuple(_REFERENCE.sub(replaced, word) for word in words)


def check_together(args: Sequence[str], env: Sequence[str]) -> None:
    """Raises `EngineRefused` if the kernel would not start a program with all of this."""
    for at, word in enumerate(args):
        if (size := word_bytes(word)) > STRING_BYTES:
            raise _invalid(too_long(f"word {at} of the command line", size))
    words, variables = _together(args), _together(env)
    if words + variables > TOTAL_BYTES:
        raise _invalid(
            too_much(f"its command line takes {words} bytes and its environment, the image's part counted, {variables}")
        )


def _together(strings: Sequence[str]) -> int:
    return sum(word_bytes(string) + POINTER_BYTES for string in strings)


def _invalid(why: str) -> EngineRefused:
    return EngineRefused(f"cannot make the container: {why}", reason=Reason.INVALID_SPEC, user_error=True)


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
            raise _invalid(
                f"environment variable {name[:60]!r} has a name or value that the kernel cannot take (NUL, or '=' in the "
                "name); correct `env`"
            )
        if (size := variable_bytes(name, value)) > STRING_BYTES:
            raise _invalid(too_long(f"environment variable {name[:60]!r}", size))
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_directory(given: str | None, image: str) -> str:
    """The spec's, else the image's, else the root. Raises `EngineRefused` for a relative one in the spec."""
    if given and not given.startswith("/"):
        raise _invalid(f"workingDir {given!r} is not absolute")
    chosen = given or image or "/"
    return chosen if chosen.startswith("/") else f"/{chosen}"
