"""A place for archives of each test's own, and proof that nothing is left running or mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.archive.layers import Place, make_place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield make_place(tmp_path)
    assert processes_naming(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def processes_naming(path: Path) -> list[str]:
    """Command lines of processes, other than this one, that have `path` in them or a descriptor below it open."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is none of ours
        if str(path) in command or any(target.startswith(str(path)) for target in opened):
            found.append(command)
    return found
