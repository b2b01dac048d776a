"""The node's network configuration, found and read as libcni does: `*.conflist`, `*.conf`, `*.json` in name order.

Read by the network's provider when a node starts and when it is asked for a network. Blocking: called in a thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.network.cni.documents import Document, Malformed, decode, decode_document, encode, raw
from perdure.network.cni.errors import ConfigurationError, ConfigurationFault

SUFFIXES = (".conflist", ".conf", ".json")
SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Oldest first. 0.3.0 and before have other result formats, and no plugin of this decade needs them."""
MAX_FILE_BYTES = 1024 * 1024

VALID_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
"""Of networks and container ids (libcni `pkg/utils`)."""
_NO_FILE_NAME = re.compile(r"[/\0]|^\.{0,2}$")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of a network. `document` is the JSON object as it was written."""

    type: str
    capabilities: frozenset[str]
    document: bytes


@dataclass(frozen=True, slots=True)
class Network:
    """A network's configuration. `document` is the whole list, with plugins from other files written into it."""

    name: str
    cni_version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool
    disable_gc: bool
    document: bytes

    def at_least(self, version: str) -> bool:
        """Whether the network speaks `version` (one of `SUPPORTED_VERSIONS`) or a later one."""
        return SUPPORTED_VERSIONS.index(self.cni_version) >= SUPPORTED_VERSIONS.index(version)

    def offers(self, capability: str) -> bool:
        """Whether some plugin would act on the capability; asked for without that, it is silently not there."""
        return any(capability in plugin.capabilities for plugin in self.plugins)


class _ListMembers(msgspec.Struct, rename="camel"):
    """What this client reads of a list; `name` may be anything, so that it is complained of as a name."""

    name: object = None
    cni_version: str = ""
    cni_versions: list[str] = []
    plugins: list[msgspec.Raw] | None = None
    disable_check: bool | str = False
    disable_gc: bool | str = msgspec.field(default=False, name="disableGC")
    load_only_inlined_plugins: bool | str = False


class _PluginMembers(msgspec.Struct):
    type: object = None
    capabilities: dict[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The network to use, the file it is from, and what an administrator should know all the same."""

    network: Network
    file: Path
    warnings: tuple[str, ...]


def load(folder: Path, name: str | None = None) -> Loaded:
    """The first valid network in `folder`, or the one of that name. Raises `ConfigurationError`."""
    files = _files(folder, SUFFIXES)
    valid: list[tuple[Path, Network]] = []
    invalid: list[ConfigurationError] = []
    for file in files:
        try:
            valid.append((file, _read(file)))
        except ConfigurationError as error:
            invalid.append(error)
    wanted = [found for found in valid if name is None or found[1].name == name]
    if not wanted:
        raise _nothing(folder, name, [network.name for _, network in valid], invalid)
    file, network = wanted[0]
    warnings = [f"{error}; it is skipped" for error in invalid]
    if name is None and len(valid) > 1:
        others = ", ".join(f"{other.name} in {at.name}" for at, other in valid[1:])
        warnings.append(f"{folder} holds more networks than one: {network.name} in {file.name} is used, not {others}")
    elif len(wanted) > 1:
        others = ", ".join(at.name for at, _ in wanted[1:])
        warnings.append(f"{folder} holds network {network.name} more than once: {file.name} is used, not {others}")
    return Loaded(network, file, tuple(warnings))


def parse(data: bytes, source: str) -> Network:
    """A configuration list from its JSON, for instance a cached one; `source` names it in errors.

    Raises `ConfigurationError`.
    """
    return _network(_document(data, source), (), source)


def _nothing(folder: Path, name: str | None, names: list[str], invalid: list[ConfigurationError]) -> ConfigurationError:
    if invalid and not names:
        return invalid[0]
    if name is None or not (names or invalid):
        message = f"no network configuration in {folder}; put a .conflist file there"
        return ConfigurationError(ConfigurationFault.NO_CONFIGURATION, message)
    skipped = "".join(f"; {error}" for error in invalid)
    message = f"no network {name} in {folder}; it has {', '.join(names)}{skipped}"
    return ConfigurationError(ConfigurationFault.NETWORK_NOT_FOUND, message)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        found = [entry for entry in folder.iterdir() if entry.suffix in suffixes and not entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"cannot read the network configuration folder {folder}: {error.strerror}; check its owner and mode"
        raise ConfigurationError(ConfigurationFault.FOLDER_UNREADABLE, message) from error
    return sorted(found)


def _read(file: Path) -> Network:
    source = str(file)
    document = _document(_bytes(file), source)
    if file.suffix != ".conflist" and "plugins" not in document:
        document = _as_list(document)
    members = _list_members(document, source)
    further: tuple[Plugin, ...] = ()
    if not _flag(members.load_only_inlined_plugins, "loadOnlyInlinedPlugins", source):
        files = _files(file.parent / _name(members, source), (".conf",))
        further = tuple(_plugin(_bytes(path), str(path)) for path in files)
    return _network(document, further, source)


def _as_list(single: Document) -> Document:
    """A file with one plugin, as the list that libcni makes of it."""
    listed: Document = {key: single[key] for key in ("name", "cniVersion") if key in single}
    return {**listed, "plugins": raw([single])}


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"cannot read {file}: {error.strerror}; check its owner and mode"
        raise ConfigurationError(ConfigurationFault.FILE_UNREADABLE, message) from error
    if len(data) > MAX_FILE_BYTES:
        message = f"{file} is larger than {MAX_FILE_BYTES} bytes: that is no network configuration; move it away"
        raise ConfigurationError(ConfigurationFault.FILE_TOO_LARGE, message)
    return data


def _document(data: bytes, source: str) -> Document:
    try:
        return decode_document(data)
    except Malformed as error:
        message = f"{source} is not a JSON object: {error}; correct it"
        raise ConfigurationError(ConfigurationFault.INVALID_JSON, message) from error


def _list_members(document: Document, source: str) -> _ListMembers:
    try:
        return decode(encode(document), _ListMembers)
    except Malformed as error:
        raise ConfigurationError(ConfigurationFault.INVALID_FIELD, f"{source}: {error}; correct it") from error


def _network(document: Document, further: tuple[Plugin, ...], source: str) -> Network:
    """`further`: plugins from files of their own, which the list's document is completed with."""
    members = _list_members(document, source)
    name, version = _name(members, source), _version(members, source)
    inlined = tuple(_plugin(bytes(one), f"{source}, plugin {at}") for at, one in enumerate(members.plugins or (), 1))
    plugins = (*inlined, *further)
    if not plugins:
        message = f"{source} lists no plugins; give it a plugins list with at least one"
        raise ConfigurationError(ConfigurationFault.NO_PLUGINS, message)
    if further:
        documents = [msgspec.Raw(plugin.document) for plugin in plugins]
        document = {**document, "plugins": raw(documents), "loadOnlyInlinedPlugins": raw(True)}
    return Network(
        name=name,
        cni_version=version,
        plugins=plugins,
        disable_check=_flag(members.disable_check, "disableCheck", source),
        disable_gc=_flag(members.disable_gc, "disableGC", source),
        document=encode(document),
    )


def _plugin(data: bytes, source: str) -> Plugin:
    _document(data, source)
    try:
        members = decode(data, _PluginMembers)
    except Malformed as error:
        raise ConfigurationError(ConfigurationFault.INVALID_FIELD, f"{source}: {error}; correct it") from error
    kind = members.type
    if not isinstance(kind, str) or _NO_FILE_NAME.search(kind) is not None:
        message = f"{source}: type must be the file name of a plugin, not {kind!r}; correct it"
        raise ConfigurationError(ConfigurationFault.INVALID_TYPE, message)
    offered = frozenset(key for key, on in (members.capabilities or {}).items() if on)
    return Plugin(type=kind, capabilities=offered, document=data)


def _name(members: _ListMembers, source: str) -> str:
    name = members.name
    if not isinstance(name, str) or VALID_NAME.fullmatch(name) is None:
        message = f"{source}: name must be letters, digits, '_', '.' and '-' (not first), not {name!r}; correct it"
        raise ConfigurationError(ConfigurationFault.INVALID_NAME, message)
    return name


def _version(members: _ListMembers, source: str) -> str:
    """The newest version that both sides speak (specification, section 1, `cniVersion` and `cniVersions`)."""
    said = [version for version in (members.cni_version, *members.cni_versions) if version]
    spoken = [version for version in SUPPORTED_VERSIONS if version in said]
    if not spoken:
        message = f"{source}: cniVersion is {', '.join(said) or 'not set'}; set one of {', '.join(SUPPORTED_VERSIONS)}"
        raise ConfigurationError(ConfigurationFault.UNSUPPORTED_VERSION, message)
    return spoken[-1]


def _flag(value: bool | str, key: str, source: str) -> bool:
    """libcni also takes the texts "true" and "false", in any case."""
    if isinstance(value, bool):
        return value
    if value.lower() not in ("true", "false"):
        message = f"{source}: {key} must be true or false, not {value!r}; correct it"
        raise ConfigurationError(ConfigurationFault.INVALID_FIELD, message)
    return value.lower() == "true"
