"""What `nft -j list` shows, made comparable, and what a table should show. Pure; called by `firewall`.

How a rule is shown depends on the version of nft, so nothing here knows it: the reference is what the same nft shows of
the same rules in an empty network namespace. Elements have one form, which is known.

Source of the form: libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from perdure.api.names import NamespaceUid
from perdure.network.ruleset import TEMPLATE, Element, Family, namespace_chain


@dataclass(frozen=True, slots=True)
class Listing:
    """Chains and sets by (family, name), each as one text that is equal where they are; and the elements."""

    chains: dict[tuple[str, str], str]
    collections: dict[tuple[str, str], str]
    elements: frozenset[Element]


def parse(printed: str) -> Listing:
    """Of one or more documents, as nft prints for one or more `list` commands. Raises `ValueError` for anything else."""
    chains: dict[tuple[str, str], list[str]] = {}
    collections: dict[tuple[str, str], str] = {}
    elements: set[Element] = set()
    for kind, shown in _objects(printed):
        if kind == "chain":
            chains.setdefault((shown["family"], shown["name"]), []).insert(0, _canonical(shown))
        elif kind == "rule":
            chains.setdefault((shown["family"], shown["chain"]), []).append(_canonical(shown["expr"]))
        elif kind in ("set", "map"):
            family, name = Family(shown["family"]), str(shown["name"])
            elements.update(_element(family, name, one) for one in shown.pop("elem", ()))
            collections[family, name] = _canonical(shown)
    return Listing({at: "\n".join(texts) for at, texts in chains.items()}, collections, frozenset(elements))


def wanted(reference: Listing, namespaces: Collection[NamespaceUid], elements: frozenset[Element]) -> Listing:
    """`reference` shows the skeleton with the namespace `TEMPLATE`: that one gives way to `namespaces`."""
    return Listing(_multiplied(reference.chains, namespaces), _multiplied(reference.collections, namespaces), elements)


def differences(found: Listing, want: Listing) -> list[str]:
    """What is missing, foreign or changed, a line each, to be read by a person. Empty: they are the same."""
    gone = {family for family, _ in want.chains} - {family for family, _ in found.chains}
    lines = [f"table {family} is missing" for family in sorted(gone)]
    for kind, here, there in (("chain", found.chains, want.chains), ("set", found.collections, want.collections)):
        lines += [f"{kind} {' '.join(at)} is missing" for at in sorted(there.keys() - here.keys()) if at[0] not in gone]
        lines += [f"{kind} {' '.join(at)} is not ours" for at in sorted(here.keys() - there.keys())]
        lines += [f"{kind} {' '.join(at)} was changed" for at in sorted(here) if at in there and here[at] != there[at]]
    missing = sorted(want.elements - found.elements)
    lines += [f"element {_shown(one)} is missing" for one in missing if one.family not in gone]
    lines += [f"element {_shown(one)} is not ours" for one in sorted(found.elements - want.elements)]
    return lines


def _multiplied(texts: dict[tuple[str, str], str], namespaces: Collection[NamespaceUid]) -> dict[tuple[str, str], str]:
    template = namespace_chain(TEMPLATE)
    chains = [namespace_chain(namespace) for namespace in namespaces]
    result = {}
    for (family, name), text in texts.items():
        if name.startswith(template):
            for chain in chains:
                result[family, name.replace(template, chain)] = text.replace(template, chain)
        else:
            result[family, name] = text
    return result


def _shown(element: Element) -> str:
    return f"{element.family} {element.collection} {' . '.join(element.key)}"


def _objects(printed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in printed.splitlines():
        if line.strip():
            for found in json.loads(line)["nftables"]:
                yield from found.items()


_VOLATILE = frozenset({"handle", "comment", "index"})


def _canonical(shown: Any) -> str:
    return json.dumps(_ordered(shown), sort_keys=True)


def _ordered(shown: Any) -> Any:
    """Without handles; members of anonymous sets in one order, as the kernel lists them in the order of their hashes."""
    match shown:
        case dict():
            return {
                key: sorted((_ordered(one) for one in value), key=json.dumps)
                if key == "set" and isinstance(value, list)
                else _ordered(value)
                for key, value in shown.items()
                if key not in _VOLATILE
            }
        case list():
            return [_ordered(one) for one in shown]
        case _:
            return shown


def _element(family: Family, collection: str, shown: Any) -> Element:
    chain = ""
    match shown:
        case [key, {"goto": {"target": str(target)}}]:
            shown, chain = key, target
        case [key, verdict]:
            shown, chain = key, json.dumps(verdict)
    match shown:
        case {"concat": list(atoms)}:
            return Element(family, collection, tuple(_atom(atom) for atom in atoms), chain)
        case str() | int():
            return Element(family, collection, (_atom(shown),), chain)
        case _:
            return Element(family, collection, (json.dumps(shown),), chain)


def _atom(shown: Any) -> str:
    """Addresses are in the form of inet_ntop(3), which is Python's as well; numbers without a type are hexadecimal."""
    text = str(shown)
    return hex(int(text, 0)) if text.startswith("0x") or isinstance(shown, int) else text
