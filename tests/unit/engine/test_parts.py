"""Small parts of the engine on their own: mounts, labels, chain ids, signals, mounted files, out-of-memory counts."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import pytest

from perdure.api.names import InstallationId, Kind, NamespaceUid, RuntimeRef, SnapshotKey, Uid
from perdure.api.runtime import Dns, HostAlias, RuntimeSpec
from perdure.engine.containerd import ContainerdSettings, oom
from perdure.engine.containerd.images import chain_ids
from perdure.engine.containerd.labels import UnreadableLabels, snapshot_facts, uid_of
from perdure.engine.containerd.messages import Mount, SnapshotInfo, SnapshotKind
from perdure.engine.containerd.overlay import NotOverlay, disk_layers, is_mounted, make_staging, remove_staging
from perdure.engine.containerd.services import label_filter
from perdure.engine.containerd.tasks import signal_number
from perdure.engine.mounted_files import MountedFileStore, hosts, resolv_conf
from perdure.reconcile.ports.errors import EngineRefused

ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
OVERLAY = Mount(
    "overlay",
    "overlay",
    "",
    ("index=off", f"workdir={ROOT}/7/work", f"upperdir={ROOT}/7/fs", f"lowerdir={ROOT}/2/fs:{ROOT}/1/fs"),
)


def test_layers_are_read_from_the_mount() -> None:
    layers = disk_layers([OVERLAY])
    assert layers.upper == Path(f"{ROOT}/7/fs")
    assert layers.lowers == (Path(f"{ROOT}/2/fs"), Path(f"{ROOT}/1/fs"))
    assert layers.containerd_root == Path("/var/lib/containerd")


def test_a_snapshot_without_a_parent_is_a_bind() -> None:
    layers = disk_layers([Mount("bind", f"{ROOT}/7/fs", "", ("rw", "rbind"))])
    assert (layers.upper, layers.lowers) == (Path(f"{ROOT}/7/fs"), ())


@pytest.mark.parametrize("mounts", [[], [OVERLAY, OVERLAY], [Mount("overlay", "overlay", "", ("lowerdir=/a",))]])
def test_other_mounts_are_refused(mounts: list[Mount]) -> None:
    with pytest.raises(NotOverlay):
        disk_layers(mounts)


def mountinfo(options: str, root: str = "/", kind: str = "overlay") -> str:
    return f"36 35 98:0 {root} /run/c/rootfs rw,noatime shared:1 - {kind} overlay {options}\n"


def test_a_mounted_upper_is_found() -> None:
    upper = Path(f"{ROOT}/7/fs")
    assert is_mounted(upper, "\n" + mountinfo(f"rw,lowerdir=/a,upperdir={ROOT}/7/fs,workdir=/w"))
    assert not is_mounted(upper, mountinfo(f"rw,lowerdir={ROOT}/7/fs,upperdir={ROOT}/77/fs"))
    assert not is_mounted(upper, "")


def test_a_mounted_upper_with_odd_characters_is_found() -> None:
    assert is_mounted(Path("/a b/snapshots/7/fs"), mountinfo("rw,upperdir=/a\\040b/snapshots/7/fs"))


def test_a_bind_of_the_upper_is_found_also_below_another_mount_point() -> None:
    upper = Path("/var/lib/containerd/x/snapshots/7/fs")
    assert is_mounted(upper, mountinfo("rw", "/containerd/x/snapshots/7/fs", "ext4"))
    assert not is_mounted(upper, mountinfo("rw", "/containerd/x/snapshots/8/fs", "ext4"))
    assert not is_mounted(upper, mountinfo("rw", "/", "ext4"))


def test_staging_is_ours_alone_and_not_below_snapshots(tmp_path: Path) -> None:
    upper = tmp_path / "overlay/snapshots/7/fs"
    upper.mkdir(parents=True)
    layers = disk_layers([Mount("bind", str(upper), "", ())])
    staging = make_staging(layers, "br-1-1")
    assert staging == tmp_path / "perdure-staging/br-1-1"
    assert make_staging(layers, "br-1-1") == staging
    staging.chmod(0o755)
    with pytest.raises(NotOverlay, match="0700"):
        make_staging(layers, "br-1-1")
    staging.rmdir()
    staging.symlink_to(tmp_path / "overlay")
    with pytest.raises((NotOverlay, FileExistsError)):
        make_staging(layers, "br-1-1")


def test_staging_goes_with_what_a_killed_restore_left_and_follows_no_link(tmp_path: Path) -> None:
    upper = tmp_path / "overlay/snapshots/7/fs"
    upper.mkdir(parents=True)
    (upper / "precious").touch()
    layers = disk_layers([Mount("bind", str(upper), "", ())])
    staging = make_staging(layers, "br-1-1")
    (staging / "half").mkdir()
    (staging / "half" / "link").symlink_to(upper)
    remove_staging(layers, "br-1-1")
    remove_staging(layers, "br-1-1")
    assert not staging.exists()
    assert (upper / "precious").exists()


def test_chain_ids_follow_the_image_spec() -> None:
    diffs = ["sha256:a", "sha256:b", "sha256:c"]
    second = "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} sha256:c".encode()).hexdigest()
    assert chain_ids(diffs) == ("sha256:a", second, third)
    assert chain_ids([]) == ()


@pytest.mark.parametrize(
    ("text", "number"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("SIGRTMAX", 64)]
)
def test_signals_have_numbers(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "SIGNOTHING", "0", "-1", "65", "SIGRTMAX+1", "SIG_DFL"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(EngineRefused):
        signal_number(text)


def test_every_named_signal_has_its_number() -> None:
    assert {name: signal_number(name) for name in signal.Signals.__members__} == dict(signal.Signals.__members__)


@pytest.mark.parametrize("labels", [{"perdure.dev/restore-pending": "soon"}, {"perdure.dev/n": "x"}])
def test_labels_that_cannot_be_read_are_no_facts(labels: dict[str, str]) -> None:
    with pytest.raises(UnreadableLabels, match="br-u-1"):
        snapshot_facts(SnapshotInfo("br-u-1", "sha256:c", SnapshotKind.ACTIVE, labels))


def test_a_generation_without_its_label_is_in_the_key() -> None:
    facts = snapshot_facts(SnapshotInfo("br-0-1-2-33", "sha256:c", SnapshotKind.ACTIVE, {}))
    assert (facts.key, facts.n, facts.gate) == (SnapshotKey("br-0-1-2-33"), 33, None)


def test_uids_are_in_container_ids_of_our_form_alone() -> None:
    ref = RuntimeRef(Kind.GAME, "a", "b", Uid("1-2"), NamespaceUid("n"))
    assert uid_of(ref.container_id) == "1-2"
    assert uid_of("redis") is None


def test_filters_quote_what_they_are_given() -> None:
    assert label_filter("perdure.dev/uid", 'a"b\\') == 'labels."perdure.dev/uid"=="a\\"b\\\\"'


def test_out_of_memory_kills_are_counted(tmp_path: Path) -> None:
    first = tmp_path / "memory/p/c"
    first.mkdir(parents=True)
    (first / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert oom.kills("/p/c", cgroup2=False, root=tmp_path) == 2
    second = tmp_path / "p/c"
    second.mkdir(parents=True)
    (second / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert oom.kills("/p/c", cgroup2=True, root=tmp_path) == 1
    assert oom.kills("/p/gone", cgroup2=True, root=tmp_path) is None


def test_name_servers_are_the_nodes_unless_given() -> None:
    node = "nameserver 192.0.2.1\nsearch node.example\n"
    assert resolv_conf(None, node) == node
    assert resolv_conf(Dns(nameservers=("192.0.2.9",)), node) == "nameserver 192.0.2.9\n"
    assert resolv_conf(Dns(searches=("a", "b")), node) == "nameserver 192.0.2.1\nsearch a b\n"


def test_hosts_name_the_runtime_and_its_aliases() -> None:
    text = hosts("hermes", (HostAlias(ip="192.0.2.7", hostnames=("db", "db.example")),))
    assert "127.0.0.1\tlocalhost\n" in text
    assert text.endswith("127.0.1.1\thermes\n192.0.2.7\tdb db.example\n")


def test_mounted_files_are_written_and_removed_whole(tmp_path: Path) -> None:
    store = MountedFileStore(tmp_path, tmp_path / "absent")
    ref = RuntimeRef(Kind.BOT, "a", "hermes", Uid("u"), NamespaceUid("n"))
    for _ in range(2):
        files = store.write(ref, RuntimeSpec(image="i"))
    assert files.hostname.read_text() == "hermes\n"
    assert files.hosts.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in files.hosts.parent.iterdir()} == {"resolv.conf", "hosts", "hostname"}
    for _ in range(2):
        store.remove(ref.uid)
    assert not files.hosts.parent.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"address": "c.sock"},
        {"namespace": "a b"},
        {"cgroup_parent": "a"},
        {"cgroup_parent": "/../a"},
        {"state_dir": Path("s")},
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object]) -> None:
    good: dict[str, object] = {"address": "/c.sock", "installation": InstallationId("i"), "state_dir": Path("/s")}
    ContainerdSettings(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        ContainerdSettings(**(good | fields))  # type: ignore[arg-type]
