"""The wire: message classes made from our own descriptor file, and calls with a deadline and a namespace.

Used by `services`, where messages become values of ours. The descriptors live in a pool of their own, so that they
cannot clash with another library's containerd or well-known types. Nothing forks while a channel is open except through
`posix_spawn`; processes that start children otherwise set GRPC_ENABLE_FORK_SUPPORT=0 before grpc is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor

from perdure.engine.containerd.errors import translate

READ_SECONDS = 10.0
"""Deadline of a call that reads or writes containerd's database."""
UNPACK_SECONDS = 600.0
"""Deadline of unpacking one layer."""
USAGE_SECONDS = 120.0
"""Deadline of counting a layer's bytes: 0.2 s for 50,000 files on a local disk."""
RUNTIME_SECONDS = 60.0
"""Deadline of a call that starts a shim or runc."""
MESSAGE_BYTES = 64 << 20

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.default_authority", "localhost"),
    # A restarted containerd is found again at once rather than after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    data = resources.files("perdure.engine.containerd").joinpath("containerd.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message_class(full_name: str) -> Callable[..., Any]:
    """The class of a message, such as `containerd.types.Mount`. Raises `KeyError`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@cache
def _method(service: str, name: str) -> MethodDescriptor:
    found: MethodDescriptor = _pool().FindServiceByName(service).methods_by_name[name]
    return found


def packed(type_url: str, value: bytes) -> Any:
    """An Any as containerd wants it: the type's bare name, without `type.googleapis.com/` (containerd/typeurl)."""
    return message_class("google.protobuf.Any")(type_url=type_url, value=value)


class Connection:
    """One channel to one containerd, in one of its namespaces. Raises the errors of `errors.translate`."""

    def __init__(self, address: str, namespace: str) -> None:
        self.address = address
        self.namespace = namespace
        self._channel = grpc.aio.insecure_channel(f"unix://{address}", options=_OPTIONS)
        self._calls: dict[tuple[str, str], Any] = {}

    async def close(self) -> None:
        await self._channel.close()

    def _call(self, service: str, name: str) -> tuple[Any, Callable[..., Any]]:
        known = self._calls.get((service, name))
        if known is None:
            method = _method(service, name)
            request = message_factory.GetMessageClass(method.input_type)
            answer = message_factory.GetMessageClass(method.output_type)
            kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
            known = (
                kind(
                    f"/{service}/{name}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=answer.FromString,
                ),
                request,
            )
            self._calls[service, name] = known
        found: tuple[Any, Callable[..., Any]] = known
        return found

    def _metadata(self, lease: str | None) -> tuple[tuple[str, str], ...]:
        headers = (("containerd-namespace", self.namespace),)
        return (*headers, ("containerd-lease", lease)) if lease else headers

    async def unary(
        self, service: str, name: str, /, *, deadline: float = READ_SECONDS, lease: str | None = None, **fields: Any
    ) -> Any:
        """Call a method with a request made of `fields`; at most `deadline` seconds."""
        call, request = self._call(service, name)
        try:
            return await call(request(**fields), metadata=self._metadata(lease), timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise translate(error, f"{service.rpartition('.')[2]}.{name}", self.address) from error

    async def stream(
        self, service: str, name: str, /, *, deadline: float | None = READ_SECONDS, **fields: Any
    ) -> AsyncIterator[Any]:
        """The messages of a server stream; `deadline` None only for one that is meant to stay open."""
        call, request = self._call(service, name)
        answers = call(request(**fields), metadata=self._metadata(None), timeout=deadline)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise translate(error, f"{service.rpartition('.')[2]}.{name}", self.address) from error
        finally:
            answers.cancel()
