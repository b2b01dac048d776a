"""What a store holds, as its manifests say: for entering archives into a catalogue that has lost them.

Whoever can write to the store could have written anything: nothing here is believed but what path and manifest agree on,
links are not followed, and what is odd is named and left. Called by `local`; memory does not grow with the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.api.names import Kind
from perdure.archive import layout
from perdure.archive.manifest import FORMAT_VERSION, MAX_MANIFEST, Source

_KINDS = frozenset(kind.value for kind in Kind)


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    source: Source
    entries: int


class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest without its lists."""

    format_version: int
    sha256: str
    bytes: int
    uncompressed_bytes: int
    empty: bool
    contents: _Contents


@dataclass(frozen=True, slots=True)
class Found:
    """One archive, or one thing that is none. `problem`: why it is not to be trusted; then there is no `brief`."""

    path: str
    """Below the store's root."""
    brief: Brief | None = None
    problem: str = ""


def survey(root: Path, installation: str) -> Iterator[Found]:
    """Everything of one installation in the store, folder by folder. Raises `OSError` for a store that is away."""
    with layout.open_folder(root, ()):
        pass
    yield from _below(root, (installation,))


def _below(root: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    """namespace / kind / name / uid: one level of folders after the other, then the archives."""
    if len(parts) == 5:
        yield from _archives(root, parts)
        return
    inner: list[str] = []
    try:
        with layout.open_folder(root, parts) as folder, os.scandir(folder) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.name)
                else:
                    yield Found("/".join((*parts, entry.name)), problem="it is no folder; a link is not followed")
    except FileNotFoundError:
        return
    except OSError as error:
        yield Found("/".join(parts), problem=f"it cannot be read: {error.strerror}")
        return
    for name in sorted(inner):
        try:
            layout.component(name)
        except ValueError as error:
            yield Found("/".join((*parts, name)), problem=str(error))
            continue
        yield from _below(root, (*parts, name))


def _archives(root: Path, parts: tuple[str, ...]) -> Iterator[Found]:
    try:
        with layout.open_folder(root, parts) as folder:
            for sequence in sorted(layout.sequences_in(folder)):
                path = "/".join((*parts, layout.archive_name(sequence)))
                try:
                    yield Found(path, _read(folder, parts, sequence))
                except (_Odd, msgspec.DecodeError) as odd:
                    yield Found(path, problem=str(odd))
                except OSError as error:
                    yield Found(path, problem=f"it cannot be read: {error.strerror}")
    except FileNotFoundError:
        return
    except OSError as error:
        yield Found("/".join(parts), problem=f"it cannot be read: {error.strerror}")


class _Odd(Exception):
    """Why something is not to be trusted."""


def _read(folder: int, parts: tuple[str, ...], sequence: int) -> Brief:
    """Raises `_Odd`, `msgspec.DecodeError`, `OSError`."""
    _require_file(folder, layout.archive_name(sequence), "there is a manifest without its archive")
    brief = _brief(folder, sequence)
    source = brief.contents.source
    told = (source.installation, source.namespace, source.kind, source.name, source.uid)
    if told != parts or source.sequence != sequence:
        raise _Odd(f"its manifest says that it is {'/'.join(told)}/{source.sequence}, which is not where it lies")
    if source.kind not in _KINDS:
        raise _Odd(f"its manifest is of a {source.kind}, which is no kind of runtime")
    return brief


def source_of(folder: int, sequence: int) -> Source | None:
    """Whose archive it is by its manifest; None where there is none that can be read. Raises `OSError`."""
    try:
        return _brief(folder, sequence).contents.source
    except (_Odd, msgspec.DecodeError):
        return None


def _brief(folder: int, sequence: int) -> Brief:
    """Raises `_Odd`, `msgspec.DecodeError`, `OSError`."""
    name = layout.manifest_name(sequence)
    size = _require_file(folder, name, "there is no manifest: it was never finished")
    if size > MAX_MANIFEST:
        raise _Odd(f"its manifest has {size} bytes, and at most {MAX_MANIFEST} are read")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(fd, "rb") as file:
        brief = msgspec.json.decode(file.read(MAX_MANIFEST + 1), type=Brief)
    if brief.format_version != FORMAT_VERSION:
        raise _Odd(f"its manifest has the format {brief.format_version}, which is not known here")
    return brief


def _require_file(folder: int, name: str, otherwise: str) -> int:
    """Its size. Raises `_Odd` for what is not there, or is no plain file: a pipe would never end."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise _Odd(otherwise) from None
    if not stat.S_ISREG(found.st_mode):
        raise _Odd(f"{name} is no plain file; a link is not followed")
    return found.st_size
