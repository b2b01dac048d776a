"""Shell text: the ``export`` lines of ``hack/env up`` and the small commands in an environment's ``bin`` folder.

Called by ``rig.environment`` and ``rig.env``.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def render_exports(variables: Mapping[str, str], command_directory: Path) -> str:
    """Lines for a POSIX shell's ``eval``; ``command_directory`` comes first on the caller's own PATH."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PATH={shlex.quote(str(command_directory))}:"$PATH"')
    return "\n".join(lines) + "\n"


def render_wrapper(command: Sequence[str], *, variables: Mapping[str, str] | None = None) -> str:
    """A script that sets ``variables`` and becomes ``command`` with the caller's arguments."""
    assignments = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (variables or {}).items())
    return f'#!/bin/sh\n{assignments}exec {shlex.join(command)} "$@"\n'
