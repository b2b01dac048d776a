"""Which network a node gets from the files that administrators and installers leave in its configuration folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.network.cni.configuration import MAX_FILE_BYTES, load, parse
from perdure.network.cni.errors import ConfigurationError, ConfigurationFault

BRIDGE = {"type": "bridge", "bridge": "br0", "capabilities": {"mac": True, "ips": False}}


def listing(name: str = "lab", version: str = "1.0.0", **members: object) -> str:
    return json.dumps({"cniVersion": version, "name": name, "plugins": [BRIDGE, {"type": "portmap"}], **members})


def test_the_first_file_by_name_wins_and_the_other_network_is_said(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_text(listing("second"))
    (tmp_path / "10-a.conflist").write_text(listing("first"))
    (tmp_path / "05-readme.txt").write_text("not a network")
    loaded = load(tmp_path)
    assert (loaded.network.name, loaded.file.name) == ("first", "10-a.conflist")
    assert len(loaded.warnings) == 1
    assert "second" in loaded.warnings[0]


def test_a_named_network_is_found_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text(listing("first"))
    (tmp_path / "20-b.json").write_text(listing("second"))
    loaded = load(tmp_path, "second")
    assert loaded.network.name == "second"
    assert loaded.warnings == ()


def test_an_invalid_file_does_not_hide_a_valid_one_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text("{")
    (tmp_path / "20-b.conflist").write_text(listing())
    loaded = load(tmp_path)
    assert loaded.network.name == "lab"
    assert "10-a.conflist" in loaded.warnings[0]


def test_a_file_with_one_plugin_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "10-a.conf").write_text(json.dumps({"cniVersion": "0.3.1", "name": "lab", **BRIDGE}))
    network = load(tmp_path).network
    assert [plugin.type for plugin in network.plugins] == ["bridge"]
    assert network.plugins[0].capabilities == {"mac"}
    assert json.loads(network.plugins[0].document)["bridge"] == "br0"
    assert parse(network.document, "again") == network


def test_plugins_in_a_folder_of_the_networks_name_are_appended_and_kept_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text(listing())
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "50-extra.conf").write_text('{"type": "tuning"}')
    network = load(tmp_path).network
    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap", "tuning"]
    assert parse(network.document, "again").plugins == network.plugins


def test_only_inlined_plugins_count_where_the_list_says_so(tmp_path: Path) -> None:
    (tmp_path / "10-a.conflist").write_text(listing(loadOnlyInlinedPlugins=True))
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "50-extra.conf").write_text('{"type": "tuning"}')
    assert [plugin.type for plugin in load(tmp_path).network.plugins] == ["bridge", "portmap"]


@pytest.mark.parametrize(
    ("version", "more", "spoken"),
    [
        ("0.3.1", [], "0.3.1"),
        ("0.4.0", [], "0.4.0"),
        ("1.1.0", [], "1.1.0"),
        ("0.4.0", ["1.0.0", "1.1.0", "2.0.0"], "1.1.0"),
        ("9.0.0", ["0.4.0"], "0.4.0"),
    ],
)
def test_the_newest_version_both_sides_speak_is_used(version: str, more: list[str], spoken: str) -> None:
    network = parse(listing(version=version, cniVersions=more).encode(), "a test")
    assert network.cni_version == spoken
    assert network.at_least("0.4.0") == (spoken != "0.3.1")


def test_switches_may_be_texts() -> None:
    network = parse(listing(disableCheck="True", disableGC=True).encode(), "a test")
    assert network.disable_check
    assert network.disable_gc


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", ConfigurationFault.INVALID_JSON),
        ("[]", ConfigurationFault.INVALID_JSON),
        ('{"a":' * 5000, ConfigurationFault.INVALID_JSON),
        ("\ud800", ConfigurationFault.INVALID_JSON),
        (listing(name=""), ConfigurationFault.INVALID_NAME),
        (listing(name="../etc"), ConfigurationFault.INVALID_NAME),
        (json.dumps({"cniVersion": "1.0.0", "plugins": [BRIDGE]}), ConfigurationFault.INVALID_NAME),
        (json.dumps({"cniVersion": "1.0.0", "name": 7, "plugins": [BRIDGE]}), ConfigurationFault.INVALID_NAME),
        (listing(plugins=[]), ConfigurationFault.NO_PLUGINS),
        (json.dumps({"cniVersion": "1.0.0", "name": "lab"}), ConfigurationFault.NO_PLUGINS),
        (listing(plugins={}), ConfigurationFault.INVALID_FIELD),
        (listing(plugins=["bridge"]), ConfigurationFault.INVALID_JSON),
        (listing(plugins=[{}]), ConfigurationFault.INVALID_TYPE),
        (listing(plugins=[{"type": ""}]), ConfigurationFault.INVALID_TYPE),
        (listing(plugins=[{"type": "../sh"}]), ConfigurationFault.INVALID_TYPE),
        (listing(plugins=[{"type": 3}]), ConfigurationFault.INVALID_TYPE),
        (listing(plugins=[{"type": "a", "capabilities": []}]), ConfigurationFault.INVALID_FIELD),
        (listing(disableCheck="perhaps"), ConfigurationFault.INVALID_FIELD),
        (listing(version="0.2.0"), ConfigurationFault.UNSUPPORTED_VERSION),
        (listing(version="2.0.0"), ConfigurationFault.UNSUPPORTED_VERSION),
        (listing(version=""), ConfigurationFault.UNSUPPORTED_VERSION),
        (" " * (MAX_FILE_BYTES + 1), ConfigurationFault.FILE_TOO_LARGE),
    ],
)
def test_each_fault_of_a_file_has_its_own_reason_and_names_the_file(
    tmp_path: Path, text: str, fault: ConfigurationFault
) -> None:
    (tmp_path / "10-a.conflist").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigurationError, match=r"10-a\.conflist") as caught:
        load(tmp_path)
    assert caught.value.fault is fault


def test_no_configuration_is_told_from_one_of_another_name(tmp_path: Path) -> None:
    for name in (None, "lab"):
        with pytest.raises(ConfigurationError) as caught:
            load(tmp_path / "absent", name)
        assert caught.value.fault is ConfigurationFault.NO_CONFIGURATION
    (tmp_path / "10-a.conflist").write_text(listing("first"))
    with pytest.raises(ConfigurationError, match="first") as caught:
        load(tmp_path, "lab")
    assert caught.value.fault is ConfigurationFault.NETWORK_NOT_FOUND


def test_a_folder_and_a_file_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "file")
    assert caught.value.fault is ConfigurationFault.FOLDER_UNREADABLE
    (tmp_path / "10-a.conflist").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    assert caught.value.fault is ConfigurationFault.FILE_UNREADABLE


def test_a_capability_is_offered_only_where_some_plugin_has_it_switched_on() -> None:
    network = parse(listing().encode(), "a test")
    assert network.offers("mac")
    assert not network.offers("ips")
    assert not network.offers("portMappings")
