"""The sample images: what containerd reads of them, and that building them again gives the same bytes."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from rig.images import (
    PAUSE,
    RELEASE_FILE,
    Image,
    busybox_layer,
    oci_archive,
    sample_images,
    write_pause,
    write_samples,
)

BUSYBOX = b"\x7fELF not really"
APPLETS = ["bin/busybox", "bin/sh", "usr/bin/env"]


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    """The members of a tar by name."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: member for member in archive.getmembers()}


def file_of(content: bytes, name: str) -> bytes:
    """One file's content out of a tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def read_archive(content: bytes) -> tuple[dict[str, object], dict[str, object], list[bytes]]:
    """Manifest, configuration and layers, with every digest on the way checked against its blob."""

    def blob(descriptor: dict[str, object]) -> bytes:
        digest = str(descriptor["digest"]).removeprefix("sha256:")
        found = file_of(content, f"blobs/sha256/{digest}")
        assert hashlib.sha256(found).hexdigest() == digest
        assert len(found) == descriptor["size"]
        return found

    index = json.loads(file_of(content, "index.json"))
    manifest = json.loads(blob(index["manifests"][0]))
    configuration = json.loads(blob(manifest["config"]))
    return index["manifests"][0], configuration, [blob(layer) for layer in manifest["layers"]]


def test_archive_names_its_image_and_every_digest_holds() -> None:
    image = Image("perdure.dev/samples/x:7", [busybox_layer(BUSYBOX, APPLETS)], ("/bin/sh",))
    described, configuration, layers = read_archive(oci_archive(image))
    assert described["annotations"] == {
        "io.containerd.image.name": "perdure.dev/samples/x:7",
        "org.opencontainers.image.ref.name": "7",
    }
    assert configuration["rootfs"] == {
        "type": "layers",
        "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
    }


def test_building_again_gives_the_same_bytes() -> None:
    first, second = ([oci_archive(image) for image in sample_images(BUSYBOX, APPLETS)] for _ in range(2))
    assert first == second


def test_second_image_is_the_first_and_one_layer_more() -> None:
    one, two = (read_archive(oci_archive(image)) for image in sample_images(BUSYBOX, APPLETS))
    assert two[2][0] == one[2][0]
    assert (len(one[2]), len(two[2])) == (1, 2)
    assert file_of(one[2][0], RELEASE_FILE) == b"1\n"
    assert file_of(two[2][1], RELEASE_FILE) == b"2\n"


def test_root_file_system_has_users_a_sticky_tmp_and_every_applet() -> None:
    content = busybox_layer(BUSYBOX, APPLETS)
    found = members(content)
    assert found["tmp"].mode == 0o1777
    assert found["bin/sh"].linkname == found["usr/bin/env"].linkname == "/bin/busybox"
    assert found["bin/busybox"].isreg()
    assert found["home/app"].uid == 1000
    assert b"app:x:1000:1000:" in file_of(content, "etc/passwd")


def test_images_built_from_the_machines_busybox_have_a_shell(tmp_path: Path) -> None:
    archives = write_samples(tmp_path)
    assert sorted(archives) == ["perdure.dev/samples/busybox:1", "perdure.dev/samples/busybox:2"]
    for archive in archives.values():
        _, configuration, layers = read_archive(archive.read_bytes())
        assert {"bin/sh", "bin/ls", "bin/busybox"} <= members(layers[0]).keys()
        assert configuration["os"] == "linux"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["busybox-1.tar", "busybox-2.tar"]


def test_what_keeps_a_pods_namespaces_is_the_first_images_layer_and_a_process_that_waits(tmp_path: Path) -> None:
    described, configuration, layers = read_archive(write_pause(tmp_path).read_bytes())
    assert described["annotations"] == {"io.containerd.image.name": PAUSE, "org.opencontainers.image.ref.name": "1"}
    assert layers == read_archive(write_samples(tmp_path)["perdure.dev/samples/busybox:1"].read_bytes())[2]
    settings = configuration["config"]
    assert isinstance(settings, dict)
    assert settings["Cmd"][0].removeprefix("/") in members(layers[0])
