"""How the command line behaves as a whole: quick, one line per error, the right exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from perdure import __version__
from perdure.cli.main import main, perdure
from perdure.cli.options import OUTPUTS

SOURCE = Path(__file__).resolve().parents[3] / "controller"
HEAVY = {"rich", "structlog", "aiohttp", "kubernetes", "kopf", "psycopg", "grpc", "prometheus_client", "msgspec"}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    environment |= {"PYTHONPATH": str(SOURCE), **variables}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    done = run("-X", "importtime", "-m", "perdure.cli.main", "--help")
    assert done.returncode == 0
    for command in ("standalone", "controller", "agent", "history", "top", "cleanup", "nodes", "version"):
        assert f"\n  {command} " in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & HEAVY == set()


def test_help_is_quick() -> None:
    def seconds() -> float:
        """Of CPU, as far as the machine's other work can be told apart."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "perdure.cli.main", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) <= 0.3


def test_version_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert f"perdure {__version__}" in capsys.readouterr().out
    assert main(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["api"] == "perdure.dev/v1alpha1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'; see 'perdure --help'"),
        (["version", "-o", "yaml"], "'yaml' is not one of"),
        (["agent", "--max-concurrent-starts", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("perdure: error: ")
    assert message in line


def test_as_a_plugin_it_is_named_as_kubectl_calls_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/kubectl-perdure", "bogus"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("kubectl perdure: error: ")


DEFECT = """
import sys
from perdure.cli import main, version
version.print_json = lambda value: 1 / 0
sys.exit(main.main(["version", "-o", "json"]))
"""


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more() -> None:
    done = run("-c", DEFECT)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(r"ZeroDivisionError.*PERDURE_DEBUG=1", line)


def test_with_debug_the_traceback_is_shown() -> None:
    done = run("-c", DEFECT, PERDURE_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


@pytest.mark.parametrize("command", ["history", "top", "archive ls", "archive reindex", "nodes accept-absence"])
def test_help_of_a_command_teaches_by_examples_and_imports_nothing_heavy(command: str) -> None:
    done = run("-X", "importtime", "-m", "perdure.cli.main", *command.split(), "--help")
    assert done.returncode == 0
    assert f"\n  Examples:\n    perdure {command}" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported & HEAVY == set()


def every_option() -> list[tuple[str, click.Option]]:
    def below(path: str, command: click.Command) -> list[tuple[str, click.Option]]:
        found = [(f"{path} {it.opts[-1]}", it) for it in command.params if isinstance(it, click.Option)]
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                found += below(f"{path} {name}", inner)
        return found

    return below("perdure", perdure)


def test_every_option_has_a_variable_that_a_shell_can_set() -> None:
    for name, it in every_option():
        if it.name == "help":
            continue
        assert isinstance(it.envvar, list), name
        for variable in it.envvar:
            assert re.fullmatch("[A-Z][A-Z0-9_]*", variable), f"{name}: {variable}"
            assert "__" not in variable, f"{name}: {variable}"


def test_variables_of_options_that_are_yes_or_no_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {(it.envvar[0], it.name, it) for _, it in every_option() if it.is_flag and isinstance(it.envvar, list)}
    assert {name for _, name, _ in flags} >= {"wait", "follow", "health", "all_namespaces"}
    for variable, name, it in flags:
        for text, value in (("1", True), ("true", True), ("0", False), ("false", False)):
            monkeypatch.setenv(variable, text)
            context = click.Context(click.Command("any", params=[it]))
            it.handle_parse_result(context, {}, [])
            assert context.params[name or ""] is value, f"{variable}={text}"


def test_one_way_to_print_is_good_for_every_command() -> None:
    for name, it in every_option():
        if it.name == "output":
            assert isinstance(it.type, click.Choice)
            assert tuple(it.type.choices) == OUTPUTS, name


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    """As `perdure history -f | head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli.main", "version"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
