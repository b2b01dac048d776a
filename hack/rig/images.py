"""The sample images, built from Debian's busybox-static by our own code: no registry and no image builder is needed.

``perdure.dev/samples/busybox:1`` is one layer, ``:2`` is the same layer and one more. Both run a shell that says it is
ready, ends on TERM, and has every busybox applet beside it. Called by ``rig.environment`` and by the tests' fixtures.
The same input gives the same bytes, so digests may be compared between machines.
"""

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rig.progress import run

REPOSITORY = "perdure.dev/samples/busybox"
PAUSE = "perdure.dev/samples/pause:1"
"""What keeps a Pod's namespaces: the layer of ``busybox:1`` with a process that does nothing."""
RELEASE_FILE = "etc/perdure-sample-release"
"""Holds the image's tag; written by the first layer and again by the second layer of ``:2``."""

APP_USER_ID = 1000
COMMAND = (
    "trap 'echo stopping; exit 0' TERM INT; "
    'echo "perdure sample $(cat /etc/perdure-sample-release) ready"; '
    "while :; do sleep 3600 & wait $!; done"
)
PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or symbolic link of a layer. Folders end in ``/``; a link has ``target``."""

    path: str
    mode: int = 0o755
    owner: int = 0
    content: bytes = b""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """What an OCI archive is made of; ``layers`` are uncompressed tar files, lowest first."""

    name: str
    layers: Sequence[bytes]
    command: Sequence[str]
    labels: dict[str, str] = field(default_factory=dict)


def layer(entries: Sequence[Entry]) -> bytes:
    """An uncompressed tar with ``entries`` in their order and fixed time stamps."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.path.rstrip("/"))
            member.mode = entry.mode
            member.uid = member.gid = entry.owner
            member.mtime = 1_767_225_600
            if entry.target:
                member.type, member.linkname = tarfile.SYMTYPE, entry.target
                archive.addfile(member)
            elif entry.path.endswith("/"):
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(entry.content)
                archive.addfile(member, io.BytesIO(entry.content))
    return buffer.getvalue()


def oci_archive(image: Image) -> bytes:
    """An OCI image layout in one tar, which containerd imports under ``image.name`` (image-spec, image-layout.md)."""
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layers = [blob("application/vnd.oci.image.layer.v1.tar", content) for content in image.layers]
    configuration = {
        "created": CREATED,
        "architecture": PLATFORMS[platform.machine()],
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": list(image.command),
            "WorkingDir": "/",
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [described["digest"] for described in layers]},
        "history": [{"created": CREATED, "created_by": "perdure sample"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", _json(configuration)),
        "layers": layers,
    }
    described = blob("application/vnd.oci.image.manifest.v1+json", _json(manifest))
    described["annotations"] = {
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }
    return layer(
        [
            Entry("oci-layout", 0o644, content=_json({"imageLayoutVersion": "1.0.0"})),
            Entry("index.json", 0o644, content=_json(index)),
            Entry("blobs/"),
            Entry("blobs/sha256/"),
            *(Entry(f"blobs/sha256/{digest}", 0o644, content=content) for digest, content in blobs.items()),
        ]
    )


def busybox_layer(busybox: bytes, applets: Sequence[str]) -> bytes:
    """A root file system of one program: ``applets`` are paths like ``bin/ls``, each a link to it."""
    folders = ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "run/", "sbin/", "sys/", "usr/", "usr/bin/"]
    folders += ["usr/sbin/", "var/", "data/"]
    passwd = f"root:x:0:0:root:/root:/bin/sh\napp:x:{APP_USER_ID}:{APP_USER_ID}:app:/home/app:/bin/sh\n"
    return layer(
        [
            *(Entry(folder, 0o700 if folder == "root/" else 0o755) for folder in folders),
            Entry("tmp/", 0o1777),
            Entry("home/app/", 0o755, owner=APP_USER_ID),
            Entry("etc/passwd", 0o644, content=passwd.encode()),
            Entry("etc/group", 0o644, content=f"root:x:0:\napp:x:{APP_USER_ID}:\n".encode()),
            Entry("etc/shadow", 0o600, content=b"root:*:20000::::::\napp:*:20000::::::\n"),
            Entry(RELEASE_FILE, 0o644, content=b"1\n"),
            Entry("bin/busybox", 0o755, content=busybox),
            *(Entry(path, 0o777, target="/bin/busybox") for path in sorted(applets) if path != "bin/busybox"),
        ]
    )


def sample_images(busybox: bytes, applets: Sequence[str]) -> tuple[Image, Image]:
    """``busybox:1`` and ``busybox:2``."""
    base = busybox_layer(busybox, applets)
    second = layer(
        [
            Entry(RELEASE_FILE, 0o644, content=b"2\n"),
            Entry("usr/share/"),
            Entry("usr/share/perdure-sample-2", 0o644, content=b"only in the second sample image\n"),
        ]
    )
    command = ("/bin/sh", "-c", COMMAND)
    return (
        Image(f"{REPOSITORY}:1", [base], command, {"dev.perdure.sample": "1"}),
        Image(f"{REPOSITORY}:2", [base, second], command, {"dev.perdure.sample": "2"}),
    )


def write_samples(directory: Path, busybox: Path = Path("/bin/busybox")) -> dict[str, Path]:
    """Build both sample images as OCI archives in ``directory``; returns image name → archive.

    Raises CommandError or OSError where ``busybox`` is not Debian's busybox-static.
    """
    images = sample_images(busybox.read_bytes(), _applets(busybox))
    return {image.name: _write(image, directory) for image in images}


def write_pause(directory: Path, busybox: Path = Path("/bin/busybox")) -> Path:
    """Build PAUSE as an OCI archive in ``directory``. Raises as `write_samples` does."""
    base = busybox_layer(busybox.read_bytes(), _applets(busybox))
    return _write(Image(PAUSE, [base], ("/bin/sleep", "2147483647")), directory)


def _applets(busybox: Path) -> list[str]:
    return run([busybox, "--list-full"], timeout=20).split()


def _write(image: Image, directory: Path) -> Path:
    """The archive: ``busybox-1.tar`` of ``…/busybox:1``."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{image.name.rpartition('/')[2].replace(':', '-')}.tar"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(oci_archive(image))
    temporary.rename(target)
    return target


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
