"""The CRDs and the typed objects are the same, field by field, in both directions; and the CRDs keep their promises."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from enum import EnumMeta, StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from perdure.api.archive import ArchiveSpec, ArchiveStatus
from perdure.api.conditions import Truth
from perdure.api.names import ARCHIVE_KIND, GROUP, NODE_KIND, VERSION, Kind
from perdure.api.node import NodeSpec, NodeStatus
from perdure.api.phases import Phase
from perdure.api.runtime import Condition, RuntimeSpec, RuntimeStatus
from perdure.api.struct import Struct

CRDS = Path(__file__).parents[3] / "crds"
SHAPES: dict[str, tuple[type[Struct], type[Struct]]] = {
    Kind.BOT: (RuntimeSpec, RuntimeStatus),
    Kind.GAME: (RuntimeSpec, RuntimeStatus),
    ARCHIVE_KIND: (ArchiveSpec, ArchiveStatus),
    NODE_KIND: (NodeSpec, NodeStatus),
}
ENUMS_OF_STRINGS: dict[tuple[type[Struct], str], type[StrEnum]] = {
    (RuntimeStatus, "phase"): Phase,
    (Condition, "status"): Truth,
}
"""Fields that the code keeps as text because an older or newer process may have written another value."""
SHOWN_DEFAULTS = {(RuntimeStatus, "restarts")}
"""Fields of a status that the CRD defaults too, so that the column is never empty."""


def load(kind: str) -> dict[str, Any]:
    (found,) = [crd for crd in map(read, sorted(CRDS.glob("*.yaml"))) if crd["spec"]["names"]["kind"] == kind]
    return found


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def schema(kind: str) -> dict[str, Any]:
    (version,) = load(kind)["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def part(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema(kind)["properties"][name]
    return found


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with where it is."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(key), dict):
            yield from walk(node[key], path + mark)


def differences(struct: type[Struct], node: dict[str, Any], where: str, *, spec: bool) -> Iterator[str]:
    """What is in one of the two only, or is not the same in both."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    properties = node.get("properties", {})
    for name in sorted(fields.keys() ^ properties.keys()):
        yield f"{where}.{name}: only in {'the code' if name in fields else 'the CRD'}"
    required = set(node.get("required", ()))
    for name, field in fields.items():
        if name in properties:
            here = f"{where}.{name}"
            if field.required != (name in required):
                yield f"{here}: required is {field.required} in the code"
            yield from of_field(struct, field, properties[name], here, spec=spec)


def of_field(struct: type[Struct], field: Any, node: dict[str, Any], where: str, *, spec: bool) -> Iterator[str]:
    wanted = default_of(field)
    if (spec or (struct, field.encode_name) in SHOWN_DEFAULTS) and node.get("default") != wanted:
        yield f"{where}: default is {wanted!r} in the code, {node.get('default')!r} in the CRD"
    named = ENUMS_OF_STRINGS.get((struct, field.encode_name))
    yield from of_type(named or without_none(field.type), node, where, spec=spec)


def default_of(field: Any) -> Any:
    """The default as JSON, with everything written out, as the API server writes it; None where there is none to show."""
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return None
    plain = written_out(value)
    return None if plain in (None, (), [], {}) else plain


def written_out(value: Any) -> Any:
    if isinstance(value, Struct):
        fields = msgspec.structs.fields(type(value))
        every = {field.encode_name: written_out(getattr(value, field.name)) for field in fields}
        return {name: item for name, item in every.items() if item is not None}
    return value.value if isinstance(value, StrEnum) else value


def without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        left = [item for item in typing.get_args(hint) if item is not type(None)]
        return left[0] if len(left) == 1 else frozenset(left)
    return hint


def of_type(hint: Any, node: dict[str, Any], where: str, *, spec: bool) -> Iterator[str]:
    if hint == frozenset({str, int}):
        if not node.get("x-kubernetes-int-or-string"):
            yield f"{where}: is text or a number in the code"
    elif typing.get_origin(hint) is tuple:
        if node.get("type") != "array":
            yield f"{where}: is a list in the code"
        else:
            yield from of_type(typing.get_args(hint)[0], node["items"], f"{where}[]", spec=spec)
    elif typing.get_origin(hint) is dict:
        yield from of_type(typing.get_args(hint)[1], node.get("additionalProperties", {}), f"{where}{{}}", spec=spec)
    elif isinstance(hint, EnumMeta):
        values = [item.value for item in typing.cast("type[StrEnum]", hint)]
        if node.get("type") != "string" or sorted(node.get("enum", [])) != sorted(values):
            yield f"{where}: enum is {values} in the code, {node.get('enum')} in the CRD"
    elif isinstance(hint, type) and issubclass(hint, Struct):
        yield from differences(hint, node, where, spec=spec)
    else:
        wanted = {str: "string", int: "integer", bool: "boolean"}[hint]
        if node.get("type") != wanted or "enum" in node:
            yield f"{where}: is {wanted} without enum in the code"


@pytest.mark.parametrize("kind", SHAPES)
def test_code_and_crd_have_the_same_fields_enums_and_defaults(kind: str) -> None:
    spec, status = SHAPES[kind]
    found = [
        *differences(spec, part(kind, "spec"), f"{kind}.spec", spec=True),
        *differences(status, part(kind, "status"), f"{kind}.status", spec=False),
    ]
    assert found == []


def test_the_two_runtime_kinds_share_their_core() -> None:
    bot, game = load(Kind.BOT)["spec"]["versions"], load(Kind.GAME)["spec"]["versions"]
    for (version,) in (bot, game):
        assert version["schema"]["openAPIV3Schema"].pop("description")
    assert bot == game


@pytest.mark.parametrize("kind", SHAPES)
def test_every_field_is_described(kind: str) -> None:
    nameless = [
        path
        for path, node in walk(schema(kind))
        if not path.endswith(("[]", "{}")) and path != ".metadata" and not node.get("description")
    ]
    assert nameless == []


@pytest.mark.parametrize("kind", SHAPES)
def test_what_a_user_can_send_is_bounded(kind: str) -> None:
    unbounded = []
    for path, node in walk(part(kind, "spec"), "spec"):
        bounded = {
            "array": "maxItems" in node,
            "string": "maxLength" in node or "enum" in node,
            "integer": "minimum" in node and "maximum" in node,
            "object": "additionalProperties" not in node or "maxProperties" in node,
        }.get(node.get("type", ""), "maxLength" in node or "type" in node)
        if not bounded:
            unbounded.append(path)
    assert unbounded == []


@pytest.mark.parametrize("kind", SHAPES)
def test_names_and_columns_are_as_documented(kind: str) -> None:
    crd = load(kind)["spec"]
    names = crd["names"]
    (version,) = crd["versions"]
    assert crd["group"] == GROUP
    assert version["name"] == VERSION
    assert version["subresources"] == {"status": {}}
    assert names["categories"] == ["perdure"]
    assert names["shortNames"] == {Kind.BOT: ["br"], Kind.GAME: ["gr"], ARCHIVE_KIND: ["ra"], NODE_KIND: ["rn"]}[kind]
    if kind in list(Kind):
        assert names["plural"] == Kind(kind).plural
        assert version["selectableFields"] == [{"jsonPath": ".status.phase"}]
        columns = [(column["name"], column.get("priority", 0)) for column in version["additionalPrinterColumns"]]
        assert columns == [
            ("PHASE", 0), ("READY", 0), ("NODE", 0), ("ADDRESS", 0), ("RESTARTS", 0), ("AGE", 0),
            ("IMAGE", 1), ("ARCHIVE", 1), ("EXPIRES", 1), ("REASON", 1),
        ]  # fmt: skip


def test_comparison_notices_what_differs() -> None:
    """The check above can fail: each kind of difference is found."""
    node = part(Kind.BOT, "spec")
    properties = node["properties"]
    del properties["user"]
    properties["extra"] = {"type": "string"}
    properties["desiredState"]["enum"].remove("Removed")
    properties["minReadySeconds"]["default"] = 7
    properties["stop"]["properties"]["gracePeriodSeconds"]["type"] = "string"
    node["required"] = []
    found = list(differences(RuntimeSpec, node, "spec", spec=True))
    assert {line.partition(":")[0] for line in found} == {
        "spec.user", "spec.extra", "spec.desiredState", "spec.minReadySeconds", "spec.stop.gracePeriodSeconds", "spec.image"
    }  # fmt: skip
