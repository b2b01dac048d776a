"""What counts as a runtime's address in a plugin's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from perdure.network.cni.documents import Malformed
from perdure.network.cni.results import addresses, parse

INTERFACES = [{"name": "br0"}, {"name": "veth1", "sandbox": ""}, {"name": "eth0", "sandbox": "/ns"}]


def answer(*ips: Mapping[str, object], interfaces: object = INTERFACES, version: str = "1.0.0") -> bytes:
    return json.dumps({"cniVersion": version, "interfaces": interfaces, "ips": ips}).encode()


def texts(data: bytes) -> list[str]:
    return [str(address) for address in addresses(parse(data, "1.0.0"), "eth0")]


def test_ipv4_comes_first_else_the_order_of_the_plugin() -> None:
    given = [{"address": text, "interface": 2} for text in ("fd00::2/64", "10.0.0.9/24", "fd00::1/64", "10.0.0.2/24")]
    assert texts(answer(*given)) == ["10.0.0.9", "10.0.0.2", "fd00::2", "fd00::1"]


def test_addresses_of_other_interfaces_do_not_count() -> None:
    given = [{"address": f"10.0.0.{at}/24", "interface": at} for at in (0, 1, 2, 3)]
    assert texts(answer(*given)) == ["10.0.0.2"]
    assert texts(answer({"address": "10.0.0.2/24", "interface": -1})) == []


def test_an_address_that_names_no_interface_is_the_sandboxs() -> None:
    assert texts(answer({"address": "192.0.2.1/32"}, interfaces=None)) == ["192.0.2.1"]


@pytest.mark.parametrize(
    "text", ["0.0.0.0/0", "169.254.1.1/16", "fe80::1/64", "::/0", "127.0.0.1/8", "224.0.0.1/4", "x"]
)
def test_addresses_that_reach_nobody_are_passed_over(text: str) -> None:
    assert texts(answer({"address": text, "interface": 2})) == []


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0", ""])
def test_every_version_is_read_and_handed_on_in_the_networks(version: str) -> None:
    result = parse(answer({"version": "4", "address": "10.0.0.2/24", "interface": 2}, version=version), "0.4.0")
    document = json.loads(result.document)
    assert document["cniVersion"] == "0.4.0"
    assert document["ips"][0]["version"] == "4"


def test_nothing_is_written_as_null_by_some_plugins() -> None:
    data = b'{"cniVersion":"1.0.0","interfaces":null,"ips":null,"routes":null,"dns":null}'
    assert parse(data, "1.0.0").ips == ()


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b'{"ips":{}}', b'{"ips":[{}]}', b'{"cniVersion":"0.2.0","ip4":{}}', b'{"a":"\xff"}'],
)
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data, "1.0.0")
