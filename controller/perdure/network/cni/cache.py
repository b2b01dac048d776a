"""What was attached, on disk in libcni's own format and names, so that a DEL after a crash knows what it has to undo.

Written by `client` around every ADD. Blocking: called in threads. A file is complete or not there, whichever process dies;
one that is damaged all the same, as by a loss of power, is said to be so, and hinders nothing.
Source: libcni `api.go`, `cachedInfo`. One member is ours: `incomplete`, in the record of an ADD that has not ended.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.network.cni.attachment import port_mappings
from perdure.network.cni.documents import Document, Malformed, decode, decode_document
from perdure.network.cni.errors import CacheUnusable

KIND = "cniCacheV1"


class _Members(msgspec.Struct, rename="camel", omit_defaults=True):
    kind: str
    container_id: str
    config: str
    if_name: str
    network_name: str
    netns: str = ""
    cni_args: tuple[tuple[str, str], ...] | None = None
    capability_args: dict[str, msgspec.Raw] | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """An attachment as it was asked for. `network` is its configuration list's JSON, `result` what its ADD answered last."""

    network_name: str
    container_id: str
    ifname: str
    netns: str
    network: bytes
    cni_args: tuple[tuple[str, str], ...]
    capabilities: Document
    result: bytes | None = None
    complete: bool = False
    """Whether every plugin's ADD has succeeded."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that cannot be understood."""

    file: Path
    problem: str


class Cache:
    """The folder `results` below `folder`. Its files are this client's alone."""

    def __init__(self, folder: Path) -> None:
        self._results = folder / "results"

    def read(self, network_name: str, container_id: str, ifname: str) -> Record | Damaged | None:
        """Raises `CacheUnusable` where a file that may be there cannot be read."""
        return self._read(self._file(network_name, container_id, ifname))

    def records(self, container_id: str = "") -> tuple[Record | Damaged, ...]:
        """All that is cached, or what is of one container, in the order of file names. Raises `CacheUnusable`."""
        about = f"-{container_id}-" if container_id else ""
        try:
            files = sorted(
                file for file in self._results.iterdir() if not file.name.startswith(".") and about in file.name
            )
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise CacheUnusable(f"cannot list cached results in {self._results}: {error.strerror}") from error
        found = (self._read(file) for file in files)
        return tuple(one for one in found if one is not None)

    def write(self, record: Record) -> None:
        """Whole when it returns, for every process from then on. Raises `CacheUnusable`, and then what was there before
        still is."""
        members = _Members(
            kind=KIND,
            container_id=record.container_id,
            config=base64.b64encode(record.network).decode(),
            if_name=record.ifname,
            network_name=record.network_name,
            netns=record.netns,
            cni_args=record.cni_args or None,
            capability_args=record.capabilities or None,
            result=msgspec.UNSET if record.result is None else msgspec.Raw(record.result),
            incomplete=not record.complete,
        )
        file = self._file(record.network_name, record.container_id, record.ifname)
        try:
            self._results.mkdir(parents=True, exist_ok=True, mode=0o700)
            _replace(file, msgspec.json.encode(members))
        except OSError as error:
            raise CacheUnusable(f"cannot write {file}: {error.strerror}; make room or correct its mode") from error

    def remove(self, network_name: str, container_id: str, ifname: str) -> None:
        """Not there: nothing. Raises `CacheUnusable`."""
        file = self._file(network_name, container_id, ifname)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise CacheUnusable(f"cannot remove {file}: {error.strerror}; correct its folder's mode") from error

    def _file(self, network_name: str, container_id: str, ifname: str) -> Path:
        return self._results / f"{network_name}-{container_id}-{ifname}"

    def _read(self, file: Path) -> Record | Damaged | None:
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheUnusable(f"cannot read {file}: {error.strerror}; correct its mode") from error
        try:
            return _record(data)
        except (Malformed, binascii.Error) as error:
            return Damaged(file, str(error))


def _record(data: bytes) -> Record:
    """Raises `Malformed` or `binascii.Error`."""
    decode_document(data)
    members = decode(data, _Members)
    port_mappings(members.capability_args or {})
    if members.kind != KIND:
        raise Malformed(f"its kind is {members.kind!r}, not {KIND}")
    result = None if isinstance(members.result, msgspec.UnsetType) else bytes(members.result)
    if result is not None:
        decode_document(result)
    return Record(
        network_name=members.network_name,
        container_id=members.container_id,
        ifname=members.if_name,
        netns=members.netns,
        network=base64.b64decode(members.config, validate=True),
        cni_args=members.cni_args or (),
        capabilities=members.capability_args or {},
        result=result,
        complete=result is not None and not members.incomplete,
    )


def _replace(file: Path, data: bytes) -> None:
    """Raises `OSError`. Names that start with a dot are nobody's record, should one be left behind.

    No fsync, which a start would wait for several times: namespaces and their links end with the machine's boot, and what
    outlives it (addresses, where the configuration keeps them on a disk) is found by the next ADD or sweep as after a
    boot that began with an empty run folder.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".")
    try:
        with open(descriptor, "wb") as opened:
            opened.write(data)
        os.rename(name, file)
    except BaseException:
        os.unlink(name)
        raise
