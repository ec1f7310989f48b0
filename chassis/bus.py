"""The broker as the kernel uses it, and the only file that knows NATS."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from chassis.envelope import Recorded, to_record
from fermion.api.journal import v1 as api

# One atomic batch holds at most so many messages; the server refuses more.
BATCH_MAX = 1000
# Below it pipelined single publishes are faster than a batch's fixed cost.
BATCH_MIN = 16
ANSWER_SECONDS_MAX = 5.0
CONNECT_SECONDS_MAX = 2.0
STREAM_AGE_SECONDS = 7 * 24 * 3600
STREAM_BYTES_MAX = 1024 * 1024 * 1024
# A stream may answer: the last sequence is another one than expected.
_WRONG_SEQUENCE = (10070, 10071, 10164)
_NOT_FOUND = (10014, 10037, 10059)

_log = logging.getLogger(__name__)

FAULTS = (NatsError, JetStreamError, OSError, asyncio.TimeoutError)


class Away(Exception):
    """NATS cannot be reached, or did not answer in time: what was sent may have arrived."""


class OutOfSequence(Exception):
    """The stream's last sequence is not the expected one: somebody else published."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a stream begins and ends, and the fact that is last; epoch 0 where it is empty."""

    first: int
    last: int
    epoch: int


def stream_name(journal: str) -> str:
    """`FERMION_<service>_<shard>`."""
    service, shard = journal.split("/")
    return f"FERMION_{service}_{shard}"


def subject_of(fact: Recorded) -> str:
    """`fermion.<service>.<shard>.<project>.<Event>`."""
    service, shard = fact.journal.split("/")
    return f"fermion.{service}.{shard}.{fact.project}.{fact.type.rsplit('.', 1)[-1]}"


def headers_of(fact: Recorded) -> dict[str, str]:
    """CloudEvents in binary mode, no more than six headers, for each one costs."""
    return {
        "ce-specversion": "1.0",
        "ce-id": f"{fact.position:020d}",
        "ce-source": f"{fact.journal}/{fact.epoch}",
        "ce-type": fact.type,
        "ce-projectposition": str(fact.project_position),
        "traceparent": fact.meta.traceparent,
    }


class Bus:
    """One connection of one service; it reconnects for ever, and says when it is away."""

    def __init__(self, url: str, name: str, seed_file: Path | None) -> None:
        self.name = name
        self._url = url
        self._seed_file = seed_file
        self._client = Client()
        self._connecting = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether it is connected now."""
        return self._client.is_connected

    async def run(self) -> None:
        """Keep connected until cancelled, then close."""
        try:
            while True:
                if not self._client.is_connected and not self._client.is_reconnecting:
                    try:
                        await self._connect()
                    except Away as error:
                        _log.warning("NATS is away: %s", error)
                await asyncio.sleep(1)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if not self._client.is_closed:
            try:
                await asyncio.wait_for(self._client.close(), 2)
            except FAULTS:
                return

    async def create_stream(self, journal: str, first_sequence: int) -> None:
        """Make the journal's stream, so that sequence = position; one that is there stays."""
        service, shard = journal.split("/")
        await self._api(
            f"STREAM.CREATE.{stream_name(journal)}",
            {
                "name": stream_name(journal),
                "subjects": [f"fermion.{service}.{shard}.>"],
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_age": STREAM_AGE_SECONDS * 1_000_000_000,
                "max_bytes": STREAM_BYTES_MAX,
                "max_msgs": -1,
                "max_consumers": -1,
                "num_replicas": 1,
                "duplicate_window": 0,
                "first_seq": first_sequence,
                "allow_atomic": True,
                "allow_direct": True,
                "deny_delete": True,
            },
        )

    async def tail(self, journal: str) -> Tail | None:
        """Where a journal's stream ends; None where there is no stream."""
        try:
            found = await self._api(f"STREAM.INFO.{stream_name(journal)}", {})
        except _NotFound:
            return None
        state = found["state"]
        assert isinstance(state, dict)
        first, last = int(state["first_seq"]), int(state["last_seq"])
        if int(state["messages"]) == 0:
            return Tail(first, last, 0)
        record = await self.message(journal, last)
        return Tail(first, last, 0 if record is None else record.epoch)

    async def message(self, journal: str, sequence: int) -> api.Record | None:
        """Read one message of a stream; None where there is none."""
        reply = await self._request(
            f"$JS.API.DIRECT.GET.{stream_name(journal)}", json.dumps({"seq": sequence}).encode()
        )
        if reply.headers and reply.headers.get("Status"):
            return None
        return api.Record.FromString(reply.data)

    async def publish(self, facts: Sequence[Recorded], expected_sequence: int) -> int:
        """
        Publish facts behind the expected last sequence; return the stream's last one then.

        A few go one by one, pipelined, each with its own expectation; more go as one atomic batch
        of at most BATCH_MAX. Raises OutOfSequence where somebody else published, Away where the
        answer did not come: read the tail again.
        """
        await self._ensure()
        if len(facts) >= BATCH_MIN:
            return await self._publish_batch(facts, expected_sequence)
        answers = await asyncio.gather(
            *(
                self._publish_one(fact, expected_sequence + place)
                for place, fact in enumerate(facts)
            ),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return expected_sequence + len(facts)

    @asynccontextmanager
    async def follow(
        self, journal: str, from_sequence: int
    ) -> AsyncIterator[Callable[[float], Awaitable[list[api.Record]]]]:
        """
        Read a stream from a sequence, without acknowledgements.

        Gives a function that waits so many seconds for what comes next (an empty list where
        nothing did). Away where the consumer is lost: make another from one's own checkpoint.
        """
        await self._ensure()
        stream = stream_name(journal)
        context = self._client.jetstream(timeout=ANSWER_SECONDS_MAX)
        try:
            consumer = await context.add_consumer(
                stream,
                ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=from_sequence,
                    ack_policy=AckPolicy.NONE,
                    mem_storage=True,
                    num_replicas=1,
                    inactive_threshold=30.0,
                ),
            )
        except FAULTS as error:
            raise Away(f"no consumer on {stream}: {error}") from error
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        try:
            pull = _Pull(self._client, subscription, inbox, stream, consumer.name)
            yield pull.next
        finally:
            try:
                await subscription.unsubscribe()
                await context.delete_consumer(stream, consumer.name)
            except FAULTS:
                # It ends by itself once nobody asks for its next message.
                _log.debug("consumer %s is left to its inactivity", consumer.name)

    async def nudge(self, journal: str) -> None:
        """Tell other processes of the service that its journal has grown; it may get lost."""
        if self.ready:
            service, shard = journal.split("/")
            try:
                await self._client.publish(f"fermion.nudge.{service}.{shard}", b"")
            except FAULTS:
                return

    async def _publish_one(self, fact: Recorded, expected: int) -> None:
        headers = {**headers_of(fact), "Nats-Expected-Last-Sequence": str(expected)}
        body = to_record(fact).SerializeToString(deterministic=True)
        reply = await self._request(subject_of(fact), body, headers)
        _check_ack(json.loads(reply.data))

    async def _publish_batch(self, facts: Sequence[Recorded], expected: int) -> int:
        token = uuid.uuid4().hex
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        try:
            for place, fact in enumerate(facts, start=1):
                headers = {
                    **headers_of(fact),
                    "Nats-Batch-Id": token,
                    "Nats-Batch-Sequence": str(place),
                }
                if place == 1:
                    headers["Nats-Expected-Last-Sequence"] = str(expected)
                if place == len(facts):
                    headers["Nats-Batch-Commit"] = "1"
                body = to_record(fact).SerializeToString(deterministic=True)
                # The first asks, too, so that a batch that cannot begin says so at once.
                reply = inbox if place in (1, len(facts)) else ""
                await self._client.publish(subject_of(fact), body, reply=reply, headers=headers)
            while True:
                answer = await subscription.next_msg(ANSWER_SECONDS_MAX)
                if not answer.data:
                    if answer.headers and answer.headers.get("Status"):
                        raise Away(f"nobody answers for {stream_name(facts[0].journal)}")
                    continue
                found = json.loads(answer.data)
                _check_ack(found)
                if "batch" in found:
                    return int(found["seq"])
        except FAULTS as error:
            raise Away(f"a batch of {len(facts)} was not answered: {error!r}") from error
        finally:
            try:
                await subscription.unsubscribe()
            except FAULTS:
                _log.debug("the batch's inbox went with its connection")

    async def _api(self, operation: str, body: dict[str, object]) -> dict[str, object]:
        reply = await self._request(f"$JS.API.{operation}", json.dumps(body).encode())
        found: dict[str, object] = json.loads(reply.data or b"{}")
        error = found.get("error")
        if isinstance(error, dict):
            if error.get("err_code") in _NOT_FOUND:
                raise _NotFound(operation)
            if error.get("err_code") == 10058:
                # A stream of that name is there with another configuration: it is kept as it is.
                return found
            raise Away(f"{operation}: {error.get('description')}")
        return found

    async def _request(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Msg:
        await self._ensure()
        try:
            return await self._client.request(
                subject, body, timeout=ANSWER_SECONDS_MAX, headers=headers
            )
        except FAULTS as error:
            raise Away(f"{subject} was not answered: {error!r}") from error

    async def _ensure(self) -> None:
        if self._client.is_connected:
            return
        if self._client.is_reconnecting:
            raise Away("reconnecting")
        await self._connect()

    async def _connect(self) -> None:
        async with self._connecting:
            if self._client.is_connected or self._client.is_reconnecting:
                return
            client = Client()
            try:
                await client.connect(
                    self._url,
                    name=self.name,
                    nkeys_seed=str(self._seed_file) if self._seed_file else None,
                    inbox_prefix=f"_INBOX_{self.name}".encode(),
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds; a float works
                    connect_timeout=CONNECT_SECONDS_MAX,  # type: ignore[arg-type]  # seconds; a float works
                    ping_interval=10,
                    error_cb=_quiet,
                    disconnected_cb=self._gone,
                )
            except (*FAULTS, nats.errors.NoServersError) as error:
                raise Away(f"{self._url}: {error!r}") from error
            self._client = client

    async def _gone(self) -> None:
        _log.info("NATS connection of %s was lost; reconnecting", self.name)


class _NotFound(Exception):
    """There is no such stream."""


@dataclass(slots=True)
class _Pull:
    """Asks for the next messages again and again, with a heartbeat that tells a lost consumer."""

    client: Client
    subscription: Subscription
    inbox: str
    stream: str
    consumer: str
    outstanding: bool = False

    async def next(self, seconds: float) -> list[api.Record]:
        """Wait for what comes next; an empty list where nothing did in so many seconds."""
        try:
            if not self.outstanding:
                await self._ask(seconds)
            records: list[api.Record] = []
            deadline = asyncio.get_running_loop().time() + seconds
            while True:
                wait = 0.001 if records else max(0.01, deadline - asyncio.get_running_loop().time())
                try:
                    message = await self.subscription.next_msg(wait)
                except (TimeoutError, nats.errors.TimeoutError):
                    if not records:
                        self.outstanding = False
                    return records
                status = (message.headers or {}).get("Status")
                if status is None:
                    records.append(api.Record.FromString(message.data))
                    if len(records) >= BATCH_MAX:
                        return records
                elif status in ("404", "408"):
                    self.outstanding = False
                    return records
                elif status != "100":
                    raise Away(f"consumer on {self.stream}: {message.headers}")
        except FAULTS as error:
            raise Away(f"consumer on {self.stream}: {error!r}") from error

    async def _ask(self, seconds: float) -> None:
        body = {
            "batch": 100_000,
            "expires": int(max(seconds, 1.0) * 1e9),
        }
        await self.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}",
            json.dumps(body).encode(),
            reply=self.inbox,
        )
        self.outstanding = True


def _check_ack(found: dict[str, object]) -> None:
    error = found.get("error")
    if not isinstance(error, dict):
        return
    if error.get("err_code") in _WRONG_SEQUENCE or "wrong last sequence" in str(error):
        raise OutOfSequence(str(error.get("description")))
    raise Away(str(error.get("description")))


async def _quiet(error: Exception) -> None:
    _log.debug("NATS: %r", error)
