"""How the demo speaks: numbered steps, the commands with what they print, and claims that were checked.

Coloured on a terminal only (and not where NO_COLOR is set, see no-color.org). Called by ``rig.demo``.
"""

import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rig.progress import run

COMMAND_SECONDS = 90.0
BOLD, DIM, GREEN, RED, CYAN = "1", "2", "32", "31", "36"
WIDTH = 100


class ClaimError(Exception):
    """Something that the demo claims is not so."""


@dataclass(slots=True)
class Narrator:
    """Tells the story on ``out`` and runs its commands in ``directory`` with ``variables``."""

    variables: Mapping[str, str]
    directory: Path
    out: TextIO = sys.stdout
    steps: int = 0
    claims: int = 0
    colours: bool = field(init=False)

    def __post_init__(self) -> None:
        self.colours = self.out.isatty() and not os.environ.get("NO_COLOR")

    def step(self, title: str) -> None:
        """Begin the next step of the story."""
        self.steps += 1
        self._print(f"\n{self._paint(f'{self.steps}. {title}', BOLD)}")

    def remark(self, text: str) -> None:
        """Prose between commands."""
        for line in textwrap.wrap(text, WIDTH - 3):
            self._print(f"   {line}")

    def command(self, *argv: str) -> str:
        """Show a command, run it, show what it prints (and return that). Raises CommandError."""
        self._print(f"   {self._paint(f'$ {shlex.join(argv)}', CYAN)}")
        output = run(argv, timeout=COMMAND_SECONDS, env={**os.environ, **self.variables}, cwd=self.directory)
        for line in output.rstrip().splitlines():
            self._print(f"     {line}".rstrip())
        return output

    def script(self, prompt: str, lines: Sequence[str]) -> None:
        """Show lines as somebody typed them at ``prompt``; the caller runs them."""
        for line in lines:
            self._print(f"   {self._paint(f'{prompt} {line}', CYAN)}")

    def claim(self, holds: bool, text: str, seen: object = "") -> None:
        """Say what was checked. Raises ClaimError, with what was ``seen`` instead, where it does not hold."""
        mark = self._paint("✓", GREEN) if holds else self._paint("✗", RED)
        first, *rest = textwrap.wrap(text, WIDTH - 5)
        self._print(f"   {mark} {first}")
        for line in rest:
            self._print(f"     {line}")
        if not holds:
            raise ClaimError(f"not so: {text}" + (f"; seen: {seen}" if seen else ""))
        self.claims += 1

    def end(self, text: str, *, good: bool) -> None:
        """The last line."""
        self._print(f"\n{self._paint(text, f'{BOLD};{GREEN if good else RED}')}")

    def plain(self, text: str) -> None:
        """A line at the margin."""
        self._print(text)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)
