"""Where other services answer: one address, or several that are tried in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chassis.embedded import free_port
from chassis.envelope import Registry
from chassis.refusals import Invalid, Unavailable
from chassis.remote import Peer, RemoteLog, channel_to
from fermion.api.journal import v1 as journal
from fermion.api.journal.v1 import service_pb2_grpc


async def test_the_next_address_is_tried_where_nobody_is_at_the_first() -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for addresses in (
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        f"127.0.0.1:{free_port()},127.0.0.1:{port}",
        f"127.0.0.1:{port},127.0.0.1:{free_port()}",
    ):
        async with channel_to("FERMION_ADDRESS", addresses) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await server.stop(0)


@pytest.mark.parametrize(
    "addresses", ["here", "a:1,b:2", "10.0.0.1:1,b:2", "10.0.0.1:1,[::1]:2", "10.0.0.1:1,", ","]
)
async def test_what_gives_no_addresses_is_a_wrong_setting(addresses: str) -> None:
    with pytest.raises(Invalid) as error:
        channel_to("FERMION_ADDRESS_PROJECTS", addresses)
    assert error.value.arguments["variable"] == "FERMION_ADDRESS_PROJECTS"


async def test_whoever_does_not_answer_in_time_or_is_not_there_is_unavailable() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for there, code in ((port, "UNIMPLEMENTED"), (free_port(), "UNAVAILABLE")):
        async with channel_to("FERMION_ADDRESS", f"127.0.0.1:{there}") as channel:
            peer = Peer("billing", channel, lambda: "token")
            check = health_pb2_grpc.HealthStub(channel).Check
            with pytest.raises(Unavailable, match=code) as error:
                await peer.ask(check, health_pb2.HealthCheckRequest(), 10)
            assert (error.value.reason, error.value.arguments["service"]) == (
                "PEER_UNANSWERED",
                "billing",
            )
    await server.stop(0)


async def test_a_peer_is_asked_with_a_token_and_not_longer_than_it_may_take() -> None:
    told: list[tuple[str, str | bytes]] = []

    class Slow(health_pb2_grpc.HealthServicer):
        async def Check(
            self,
            request: health_pb2.HealthCheckRequest,
            context: grpc.aio.ServicerContext[
                health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
            ],
        ) -> health_pb2.HealthCheckResponse:
            told.extend(context.invocation_metadata() or ())
            await asyncio.Event().wait()
            raise AssertionError

    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel_to("FERMION_ADDRESS", f"127.0.0.1:{port}") as channel:
        peer = Peer("billing", channel, lambda: "secret")
        check = health_pb2_grpc.HealthStub(channel).Check
        with pytest.raises(Unavailable, match="DEADLINE_EXCEEDED"):
            await peer.ask(check, health_pb2.HealthCheckRequest(), 0.2)
    assert ("authorization", "Bearer secret") in told
    await server.stop(0)


async def test_an_owner_that_answers_with_nothing_has_not_told_that_nothing_is_there() -> None:
    class Silent(service_pb2_grpc.JournalServiceServicer):
        async def ReadLog(
            self, request: journal.ReadLogRequest, context: object
        ) -> AsyncIterator[journal.ReadLogResponse]:
            for answer in ():
                yield answer

    server = grpc.aio.server()
    service_pb2_grpc.add_JournalServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel_to("FERMION_ADDRESS", f"127.0.0.1:{port}") as channel:
        log = RemoteLog(channel, "a/0", lambda: "token", Registry({}))
        with pytest.raises(Unavailable) as error:
            await log.read(0, 1)
        assert error.value.reason == "LOG_UNAVAILABLE"
    await server.stop(0)
