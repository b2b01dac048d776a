"""The stored descriptor file is what the definitions give, and the messages carry containerd's numbers."""

from __future__ import annotations

from perdure.engine.containerd.rpc import message_class, packed
from rig.protos import compiled, stored


def test_the_descriptor_file_is_what_the_definitions_give() -> None:
    assert stored() == compiled(), "run hack/protos"


def test_messages_carry_containerds_field_numbers() -> None:
    # Bytes written by hand from containerd's definitions: field 3 is rootfs, 9 options, 1 the id.
    mount = message_class("containerd.types.Mount")(type="bind", source="/a", options=["ro"])
    request = message_class("containerd.services.tasks.v1.CreateTaskRequest")(
        container_id="c", rootfs=[mount], options=packed("t", b"v")
    )
    wire = b"\x0a\x01c" + b"\x1a\x0e\x0a\x04bind\x12\x02/a\x22\x02ro" + b"\x4a\x06\x0a\x01t\x12\x01v"
    assert request.SerializeToString() == wire


def test_types_inside_any_have_no_prefix() -> None:
    assert packed("containerd.runc.v1.Options", b"").type_url == "containerd.runc.v1.Options"
