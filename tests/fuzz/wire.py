"""Calls as bytes: what is sent need not be a message, and what comes back is read as it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# Longer than any call may take, also on a machine that has much else to do.
SECONDS_MAX: Final = 20.0
# So long a stream that was let in is listened to.
LISTEN_SECONDS: Final = 0.05
RESPONSES_MAX: Final = 50

Found = TypeVar("Found")
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: a code, what a refusal says, and the bytes of the responses."""

    code: str
    message: str = ""
    reason: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    request_id: str = ""
    retry_ms: int = 0
    responses: tuple[bytes, ...] = ()

    @property
    def next_step(self) -> str:
        """What to do next."""
        return self.arguments.get("next_step", "")

    def says(self, text: str) -> bool:
        """Whether a refusal quotes this."""
        return any(text in one for one in (self.message, *self.arguments.values()))


class Wire:
    """One connection to a platform, and a loop of its own."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        )
        self.channel = self.run(_opened(address, options))

    def close(self) -> None:
        """End it."""
        self.run(self.channel.close())
        self._runner.close()

    def run(self, doing: Coroutine[object, object, Found]) -> Found:
        """Do something on its loop."""
        return self._runner.run(doing)

    def call(self, method: MethodDescriptor, body: bytes, metadata: Metadata) -> Answer:
        """Send bytes as the request of an RPC."""
        return self.run(self.answer(method, body, metadata))

    def ask(
        self, method: MethodDescriptor, request: Message, metadata: Metadata
    ) -> Sequence[Message]:
        """Send a request that has to be answered; its responses."""
        answer = self.call(method, request.SerializeToString(), metadata)
        assert answer.code == "OK", (method.full_name, answer)
        kind: type[Message] = GetMessageClass(method.output_type)
        return [kind.FromString(one) for one in answer.responses]

    async def answer(self, method: MethodDescriptor, body: bytes, metadata: Metadata) -> Answer:
        """What comes of a call; a stream that was let in is listened to for a moment, and left."""
        assert method.containing_service is not None
        path = f"/{method.containing_service.full_name}/{method.name}"
        headers, responses = tuple(metadata), list[bytes]()
        try:
            if method.client_streaming:
                exchange = self.channel.stream_stream(path)
                call = exchange(iter([body]), metadata=headers, timeout=SECONDS_MAX)
                await _listen(call, responses)
            elif method.server_streaming:
                stream = self.channel.unary_stream(path)
                call = stream(body, metadata=headers, timeout=SECONDS_MAX)
                await _listen(call, responses)
            else:
                unary = self.channel.unary_unary(path)
                responses.append(await unary(body, metadata=headers, timeout=SECONDS_MAX))
        except grpc.aio.AioRpcError as error:
            return refusal(error, responses)
        return Answer("OK", responses=tuple(responses))


async def _opened(address: str, options: Iterable[tuple[str, object]]) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=list(options))


async def _listen(
    call: grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes],
    responses: list[bytes],
) -> None:
    """Wait until it is let in or refused, then read what comes at once."""
    await call.initial_metadata()
    try:
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(LISTEN_SECONDS):
                for _ in itertools.repeat(None, RESPONSES_MAX):
                    response = await call.read()
                    if response is grpc.aio.EOF:
                        return
                    responses.append(response)
    finally:
        call.cancel()


def refusal(error: grpc.aio.AioRpcError, responses: Sequence[bytes] = ()) -> Answer:
    """What a refusal says, beside what had been answered before it."""
    status = rpc_status.from_call(error)
    details = [] if status is None else status.details
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    told, retry = error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo()
    for detail in details:
        for one in (info, bad, told, retry):
            with suppress(DecodeError):
                detail.Unpack(one)
    return Answer(
        error.code().name,
        error.details() or "",
        info.reason,
        dict(info.metadata),
        tuple((one.field, one.description) for one in bad.field_violations),
        told.request_id,
        retry.retry_delay.ToMilliseconds(),
        tuple(responses),
    )
