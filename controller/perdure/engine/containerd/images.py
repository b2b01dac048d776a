"""Images on the node: found by name, read down to their configuration, and unpacked where they are not yet.

Sources: OCI image-spec (image-index.md, manifest.md, config.md), containerd docs/content-flow.md for the labels that
hold content and snapshots together.
"""

from __future__ import annotations

import hashlib
import platform
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog

from perdure.api.conditions import Reason
from perdure.api.names import ChainId
from perdure.api.runtime import PullPolicy
from perdure.engine.containerd.errors import AlreadyExists, NotFound
from perdure.engine.containerd.labels import UNPACK_PREFIX
from perdure.engine.containerd.messages import Descriptor
from perdure.engine.containerd.services import Services, expiry_label
from perdure.engine.image_names import InvalidImageName, normalise
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import ImageFacts
from perdure.reconcile.ports.errors import EngineRefused, PortError

_log = structlog.get_logger(__name__)

ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
MAX_DOCUMENT = 8 << 20
"""No index, manifest or configuration may be larger, bytes (containerd refuses more than 8 MiB as well)."""
MAX_NESTING = 4
"""Indexes of indexes are allowed by the format; this many are followed."""
LEASE_SECONDS = 24 * 3600.0
"""Half-unpacked layers are collected after this, should their unpacking be killed."""
CACHED_IMAGES = 256


class _Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class _Reference(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    media_type: str = ""
    size: int = 0
    platform: _Platform | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """An index or a manifest: which one is told by which lists it has."""

    manifests: tuple[_Reference, ...] | None = None
    config: _Reference | None = None
    layers: tuple[_Reference, ...] = ()


class _Execution(msgspec.Struct, frozen=True):
    user: str | None = msgspec.field(default=None, name="User")
    env: tuple[str, ...] | None = msgspec.field(default=None, name="Env")
    entrypoint: tuple[str, ...] | None = msgspec.field(default=None, name="Entrypoint")
    cmd: tuple[str, ...] | None = msgspec.field(default=None, name="Cmd")
    working_dir: str | None = msgspec.field(default=None, name="WorkingDir")
    stop_signal: str | None = msgspec.field(default=None, name="StopSignal")


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()


class _Configuration(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    config: _Execution | None = None
    rootfs: _RootFs = _RootFs()


@dataclass(frozen=True, slots=True)
class _Image:
    """All that follows from a digest: it never changes, so it is kept."""

    config_digest: str
    config: _Configuration
    layers: tuple[_Reference, ...]

    @property
    def chain_ids(self) -> tuple[str, ...]:
        return chain_ids(self.config.rootfs.diff_ids)


class _Incomplete(Exception):
    """The name is there, but a part of the image is not, or is not what it should be."""


class _OtherPlatform(Exception):
    """The image has no part for this node; the message lists what it has."""


D = TypeVar("D", _Document, _Configuration)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id after each layer (image-spec config.md, "Layer ChainID"); empty for an image without layers."""
    chain: list[str] = []
    for diff in diff_ids:
        chain.append(f"sha256:{hashlib.sha256(f'{chain[-1]} {diff}'.encode()).hexdigest()}" if chain else diff)
    return tuple(chain)


class Images:
    """What the engine knows of images. Called for `image` and `ensure_image` of the port."""

    def __init__(self, services: Services, namespace: str) -> None:
        self._services = services
        self._namespace = namespace
        self._architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        self._known: OrderedDict[str, _Image] = OrderedDict()

    async def find(self, name: str) -> Certain[ImageFacts]:
        """The image if it is whole and for this platform; never raises."""
        try:
            target = await self._target(name)
            if target is None:
                return Absent()
            return Present(_facts(name, target, await self._resolve(target)))
        except (_Incomplete, _OtherPlatform, InvalidImageName):
            return Absent()
        except PortError as error:
            return Unknown(str(error))

    async def ensure(self, name: str, policy: PullPolicy) -> ImageFacts:
        """The image, unpacked. Raises `EngineRefused` with what the user can do, or `EngineUnavailable`."""
        try:
            target = await self._target(name)
        except InvalidImageName as error:
            raise EngineRefused(str(error), reason=Reason.INVALID_SPEC, user_error=True) from error
        if target is None:
            raise self._missing(name, policy)
        try:
            image = await self._resolve(target)
            await self._unpack(image)
        except _OtherPlatform as error:
            raise EngineRefused(
                f"image {name} is for {error}, this node is linux/{self._architecture}; use an image for this platform",
                reason=Reason.PLATFORM_MISMATCH,
                user_error=True,
            ) from error
        except _Incomplete as error:
            raise EngineRefused(
                f"image {name} is on the node but not whole ({error}); import it again: {self._import_command}",
                reason=Reason.IMAGE_NOT_FOUND,
                user_error=True,
            ) from error
        if policy is PullPolicy.ALWAYS:
            _log.debug("image_not_pulled", image=name, why="no pull service; the node's copy is used")
        return _facts(name, target, image)

    @property
    def _import_command(self) -> str:
        return f"ctr -n {self._namespace} images import <archive.tar>"

    def _missing(self, name: str, policy: PullPolicy) -> EngineRefused:
        if policy is PullPolicy.NEVER:
            return EngineRefused(
                f"image {name} is not on the node and imagePullPolicy is Never; import it: {self._import_command}",
                reason=Reason.IMAGE_NOT_FOUND,
                user_error=True,
            )
        return EngineRefused(
            f"image {name} is not on the node and cannot be pulled by this version; import it: {self._import_command}",
            reason=Reason.PULL_UNSUPPORTED,
            user_error=True,
        )

    async def _target(self, name: str) -> Descriptor | None:
        """What the name points to: under its full form, else exactly as written (as `ctr` may have stored it).

        Raises `InvalidImageName`.
        """
        for candidate in dict.fromkeys((normalise(name), name)):
            try:
                return await self._services.image_target(candidate)
            except NotFound as error:
                if not error.is_about("image", candidate):
                    raise
        return None

    async def _resolve(self, target: Descriptor) -> _Image:
        known = self._known.get(target.digest)
        if known is None:
            manifest = await self._manifest(target.digest, MAX_NESTING)
            if manifest.config is None:
                raise _Incomplete(f"{target.digest} is no image manifest")
            config = await self._read(manifest.config.digest, _Configuration)
            if (config.os or "linux") != "linux" or config.architecture not in ("", self._architecture):
                raise _OtherPlatform(f"{config.os}/{config.architecture}")
            if len(config.rootfs.diff_ids) != len(manifest.layers):
                raise _Incomplete(f"{len(manifest.layers)} layers, {len(config.rootfs.diff_ids)} diff ids")
            known = _Image(manifest.config.digest, config, manifest.layers)
        self._known[target.digest] = known
        self._known.move_to_end(target.digest)
        if len(self._known) > CACHED_IMAGES:
            self._known.popitem(last=False)
        return known

    async def _manifest(self, digest: str, nesting: int) -> _Document:
        document = await self._read(digest, _Document)
        if document.manifests is None:
            return document
        if nesting == 0:
            raise _Incomplete(f"more than {MAX_NESTING} indexes inside each other")
        chosen = [entry for entry in document.manifests if self._suits(entry.platform)]
        if not chosen:
            offered = (str(e.platform) for e in document.manifests if e.platform and e.platform.os != "unknown")
            raise _OtherPlatform(", ".join(sorted(set(offered))) or "no platform at all")
        return await self._manifest(chosen[0].digest, nesting - 1)

    def _suits(self, wanted: _Platform | None) -> bool:
        """An entry without a platform may be anything; its configuration is looked at later."""
        return wanted is None or (wanted.os == "linux" and wanted.architecture == self._architecture)

    async def _read(self, digest: str, shape: type[D]) -> D:
        try:
            return msgspec.json.decode(await self._services.content.read(digest, MAX_DOCUMENT), type=shape)
        except NotFound as error:
            if not error.is_about("content(?: digest)?", digest):
                raise
            raise _Incomplete(f"blob {digest} is missing") from error
        except msgspec.MsgspecError as error:
            raise _Incomplete(f"blob {digest} cannot be read: {error}") from error

    async def _unpacked(self, chain: str) -> bool:
        try:
            await self._services.snapshots.stat(chain)
        except NotFound as error:
            if not error.is_about("snapshot", chain):
                raise
            return False
        return True

    async def _unpack(self, image: _Image) -> None:
        """Make the image's snapshots, from the first layer that is missing on."""
        chain = image.chain_ids
        if not chain or await self._unpacked(chain[-1]):
            return
        lease = f"unpack-{image.config_digest.partition(':')[2]}"
        try:
            await self._services.create_lease(lease, expiry_label(LEASE_SECONDS))
        except AlreadyExists:
            _log.info("unpack_resumed", config=image.config_digest)
        parent = ""
        for number, (layer, diff, name) in enumerate(
            zip(image.layers, image.config.rootfs.diff_ids, chain, strict=True)
        ):
            if not await self._unpacked(name):
                await self._unpack_layer(layer, diff, name, parent, lease, number)
            parent = name
        label = f"containerd.io/gc.ref.snapshot.{self._services.snapshotter}"
        await self._services.content.add_label(image.config_digest, label, chain[-1])
        await self._services.delete_lease(lease)

    async def _unpack_layer(
        self, layer: _Reference, diff: str, name: str, parent: str, lease: str, number: int
    ) -> None:
        snapshots = self._services.snapshots
        key = f"{UNPACK_PREFIX}{number}-{name}"
        try:
            mounts = await snapshots.prepare(key, parent, {}, lease)
        except AlreadyExists:
            # Left behind half-way by a predecessor: what is in it is unknown, so it is made anew.
            await snapshots.remove(key)
            mounts = await snapshots.prepare(key, parent, {}, lease)
        try:
            applied = await self._services.apply_layer(
                Descriptor(layer.media_type, layer.digest, layer.size), mounts, lease
            )
        except NotFound as error:
            await snapshots.remove(key)
            raise _Incomplete(f"layer {layer.digest} is missing") from error
        if applied != diff:
            await snapshots.remove(key)
            raise _Incomplete(f"layer {layer.digest} unpacks to {applied}, its configuration says {diff}")
        try:
            await snapshots.commit(name, key, {}, lease)
        except AlreadyExists:
            # Somebody else unpacked the same layer meanwhile; theirs is as good.
            await snapshots.remove(key)


def _facts(name: str, target: Descriptor, image: _Image) -> ImageFacts:
    execution = image.config.config or _Execution()
    chain = image.chain_ids
    return ImageFacts(
        name=name,
        digest=target.digest,
        chain_id=ChainId(chain[-1] if chain else ""),
        entrypoint=execution.entrypoint or (),
        cmd=execution.cmd or (),
        env=execution.env or (),
        working_dir=execution.working_dir or "",
        user=execution.user or "",
        stop_signal=execution.stop_signal or "",
    )
