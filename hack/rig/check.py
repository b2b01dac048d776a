"""``hack/check``: format, lint, types, import layers, shell syntax, and words that must not be in the repository.

All checks run, two at a time, even if one fails; the output of failed ones is shown. Needs neither root nor services.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rig.paths import CHECKOUT

SECONDS = 300.0
PARALLEL = 2
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""git's name for the tree without files: a difference to it is the whole work tree."""

FORBIDDEN = (
    (re.compile(r"\.\./shared"), "a folder outside the repository"),
    (re.compile(re.escape(f"{CHECKOUT}/")), "the place of one person's clone"),
    (re.compile(r"^\s*--(?:extra-)?index-url|^\s*--find-links", re.MULTILINE), "a package index of one's own"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended; ``output`` is empty when it passed."""

    name: str
    passed: bool
    output: str
    seconds: float


def command(*argv: str) -> str:
    """Run a tool in the checkout; returns its output if it fails, else nothing."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT / "controller")}
    result = subprocess.run(
        argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return "" if result.returncode == 0 else (result.stdout + result.stderr) or f"exit code {result.returncode}"


def tracked_files() -> list[Path]:
    """Files of the repository that exist in the work tree, new ones that git does not ignore included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    paths = (CHECKOUT / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in set(paths) if path.is_file())


def shell_scripts(files: list[Path]) -> list[str]:
    """Those of ``files`` that are shell, by suffix or by first line."""
    found = []
    for path in files:
        with path.open("rb") as file:
            first = file.readline(200)
        if path.suffix == ".sh" or re.match(rb"#!.*\b(ba)?sh\b", first):
            found.append(str(path.relative_to(CHECKOUT)))
    return found


def shell_syntax(scripts: list[str]) -> str:
    """Every script parses; shellcheck's warnings too where it is installed."""
    failures = [command("bash", "-n", script) for script in scripts]
    if shutil.which("shellcheck"):
        failures.append(command("shellcheck", "--severity=warning", "--shell=bash", *scripts))
    return "\n".join(failure for failure in failures if failure)


def forbidden_words(files: list[Path]) -> str:
    """No file names a place that only one person's machine has."""
    found = []
    for path in files:
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            for pattern, meaning in FORBIDDEN:
                if pattern.search(line):
                    found.append(f"{path.relative_to(CHECKOUT)}:{number}: {meaning}: {line.strip()[:100]}")
    return "\n".join(found)


def checks() -> dict[str, Callable[[], str]]:
    """All checks by name; the slowest first."""
    files = tracked_files()
    return {
        "types (mypy)": partial(command, "mypy", "--no-error-summary", "controller", "hack", "tests"),
        "import layers": partial(command, "lint-imports", "--no-cache"),
        "format (ruff)": partial(command, "ruff", "format", "--check", "."),
        "lint (ruff)": partial(command, "ruff", "check", "--quiet", "."),
        "shell syntax": partial(shell_syntax, shell_scripts(files)),
        "forbidden words": partial(forbidden_words, files),
        "white space": partial(command, "git", "diff", "--check", EMPTY_TREE),
    }


def main() -> int:
    """Entry point of ``hack/check``."""

    def perform(named: tuple[str, Callable[[], str]]) -> Outcome:
        began = time.monotonic()
        try:
            output = named[1]()
        except subprocess.SubprocessError as error:
            output = str(error)
        return Outcome(named[0], not output, output, time.monotonic() - began)

    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = list(pool.map(perform, checks().items()))
    for outcome in outcomes:
        print(f"{'ok    ' if outcome.passed else 'FAILED'} {outcome.name} ({outcome.seconds:.1f} s)")
    for outcome in outcomes:
        if not outcome.passed:
            print(f"\n--- {outcome.name}\n{outcome.output.rstrip()}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
