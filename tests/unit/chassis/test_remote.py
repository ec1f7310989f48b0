"""Where other services answer: one address, or several that are tried in turn."""

from __future__ import annotations

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chassis.embedded import free_port
from chassis.refusals import Invalid
from chassis.remote import channel_to


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
