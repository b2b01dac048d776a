"""What hack/env prints for ``eval`` and writes into ``bin``, judged by a real shell."""

import subprocess
from pathlib import Path

import pytest

from rig.exports import render_exports, render_wrapper

AWKWARD = [
    "plain",
    "with space",
    "quo'te",
    'dou"ble',
    "$HOME `id` \\",
    "line\nbreak",
    "postgresql://u@/d?host=/x&port=1",
]


def in_shell(script: str, *arguments: str) -> str:
    command = ["/bin/sh", "-c", script, "sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


@pytest.mark.parametrize("value", AWKWARD)
def test_shell_reads_back_what_was_exported(value: str) -> None:
    lines = render_exports({"PERDURE_VALUE": value}, Path("/a b/bin"))
    assert in_shell('eval "$1"; printf %s "$PERDURE_VALUE"', lines) == value


def test_commands_come_first_on_the_callers_own_path() -> None:
    lines = render_exports({}, Path("/a b/bin"))
    assert in_shell(f'PATH=/usr/bin:/bin\n{lines}printf %s "$PATH"') == "/a b/bin:/usr/bin:/bin"


@pytest.mark.parametrize("value", AWKWARD)
def test_wrapper_passes_arguments_and_variables_through(tmp_path: Path, value: str) -> None:
    wrapper = tmp_path / "wrapper"
    command = ["sh", "-c", 'printf "%s|%s" "$SETTING" "$1"', "sh"]
    wrapper.write_text(render_wrapper(command, variables={"SETTING": value}))
    wrapper.chmod(0o755)
    result = subprocess.run([wrapper, value], capture_output=True, text=True, check=True, timeout=10)
    assert result.stdout == f"{value}|{value}"
