"""The broker as the kernel uses it, and the only file that knows NATS."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from fermion.api.journal import v1 as api

# One atomic batch holds at most so many messages; the server refuses more.
BATCH_MAX = 1000
# Below it pipelined single publishes are faster than a batch's fixed cost.
BATCH_MIN = 16
ANSWER_SECONDS_MAX = 5.0
CONNECT_SECONDS_MAX = 2.0
CONNECT_AGAIN_SECONDS = 0.2
# A reader without a consumer polls the log; it must not wait long to be told so.
CONSUMER_SECONDS_MAX = 2.0
CONSUMER_IDLE_SECONDS = 30.0
# Messages asked for at a time, and bytes of them: the server drops a client that takes less than it is
# sent by 64 MB, and all readers and the relay of a service share one connection.
PULL_MAX = 256
PULL_BYTES_MAX = 4 * 1024 * 1024
PULL_SECONDS = 5.0
HEARTBEAT_SECONDS = 0.5
# A consumer that says nothing at all for so long is lost.
LOST_SECONDS = 1.5
STREAM_AGE_SECONDS = 7 * 24 * 3600
STREAM_BYTES_MAX = 1024 * 1024 * 1024

FAULTS = (NatsError, OSError, asyncio.TimeoutError)

# The stream's last sequence is another one than was expected.
_WRONG_SEQUENCE = (10071, 10164)
# No stream, no message.
_NOT_FOUND = (10037, 10059)
_NAME_IN_USE = 10058
# How the server (409) ends a pull that is used up, by its bytes or by its messages.
_USED_UP = ("Message Size Exceeds MaxBytes", "Batch Completed")

# What the server says in place of a message begins like this.
_STATUS = b"NATS/1.0 "

_log = logging.getLogger(__name__)

# Waits so many seconds for what comes next of a stream; an empty list where nothing did.
Following: TypeAlias = Callable[[float], Awaitable[list[api.Record]]]


class Away(Exception):
    """NATS cannot be reached, or did not answer in time: what was sent may have arrived."""


class OutOfSequence(Exception):
    """The stream's last sequence is not the expected one: somebody else published."""


class Foreign(Exception):
    """The stream holds something that is no fact of this journal at this place."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Sequences where a stream begins and ends; an empty one begins behind its end."""

    first: int
    last: int
    # Messages that are not there, between the first and the last: a block of its file was damaged.
    missing: int = 0

    @property
    def empty(self) -> bool:
        """Whether it holds nothing (any more)."""
        return self.first > self.last


def stream_name(journal: str) -> str:
    """`FERMION_<service>_<shard>`."""
    service, shard = journal.split("/")
    return f"FERMION_{service}_{shard}"


def subject_of(fact: api.Record) -> str:
    """`fermion.<service>.<shard>.<project>.<Event>`."""
    service, shard = fact.journal.split("/")
    return f"fermion.{service}.{shard}.{fact.project}.{fact.type.rsplit('.', 1)[-1]}"


def nudge_subject(journal: str) -> str:
    """`fermion.nudge.<service>.<shard>`, on core NATS."""
    service, shard = journal.split("/")
    return f"fermion.nudge.{service}.{shard}"


def headers_of(fact: api.Record) -> dict[str, str]:
    """CloudEvents in binary mode, no more than six headers, for each one costs."""
    return {
        "ce-specversion": "1.0",
        "ce-id": f"{fact.position:020d}",
        "ce-source": f"{fact.journal}/{fact.epoch}",
        "ce-type": fact.type,
        "ce-projectposition": str(fact.project_position),
        "traceparent": fact.meta.traceparent,
    }


class _Client(Client):
    """
    Leaves the headers of facts unread: they are for subscribers, and reading them takes longer than all
    else about a fact. Its own method is none of nats-py's public ones: without it all works, slower.
    """

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if headers is None or not headers.startswith(_STATUS):
            return None
        found: dict[str, str] | None = await super()._process_headers(headers)
        return found


class Bus:
    """
    One connection of one service, kept by `run`; it reconnects for ever.

    While it is not connected every call is `Away` at once, so that nobody waits for NATS who has
    another way.
    """

    def __init__(self, url: str, name: str, seed_file: Path | None) -> None:
        self.name = name
        self._url = url
        self._seed_file = seed_file
        self._client: Client = _Client()
        self._inbox = ""
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        # What is published is sent whole before the next begins, and answered before the next is.
        self._sending, self._answering = asyncio.Lock(), asyncio.Lock()
        self._pulls: set[_Pull] = set()
        self._listeners: dict[str, Callable[[], None]] = {}
        self._connected = asyncio.Event()
        self._complaint = ""

    @property
    def ready(self) -> bool:
        """Whether it is connected now."""
        return bool(self._inbox) and self._client.is_connected

    async def run(self) -> None:
        """Keep connected until cancelled, then close."""
        try:
            while True:
                if self._client.is_closed or not self._inbox:
                    await self._connect()
                await asyncio.sleep(CONNECT_AGAIN_SECONDS)
        finally:
            await self._close()

    async def wait_ready(self, seconds: float) -> bool:
        """Wait until it is connected; False where it was not in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

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
                "first_seq": first_sequence,
                "allow_atomic": True,
                "allow_direct": True,
                "deny_delete": True,
            },
        )

    async def delete_stream(self, journal: str) -> None:
        """
        Take the journal's stream away; the relay makes and fills another one.

        The server says that it is gone also where the files of an earlier one were still in its way
        (2.15.1), and the next one begins with what this one had: who makes it looks at its tail.
        """
        try:
            await self._api(f"STREAM.DELETE.{stream_name(journal)}", {})
        except _NotFound:
            return

    async def tail(self, journal: str) -> Tail | None:
        """Where a journal's stream begins and ends; None where there is no stream."""
        try:
            found = await self._api(f"STREAM.INFO.{stream_name(journal)}", {})
        except _NotFound:
            return None
        state = found["state"]
        assert isinstance(state, dict)
        count, last = int(state["messages"]), int(state["last_seq"])
        first = int(state["first_seq"]) if count else last + 1
        return Tail(first, last, last - first + 1 - count)

    async def message(self, journal: str, sequence: int) -> api.Record | None:
        """Read one message from the stream's leader; None where there is none, or Foreign."""
        try:
            found = await self._api(f"STREAM.MSG.GET.{stream_name(journal)}", {"seq": sequence})
        except _NotFound:
            return None
        message = found["message"]
        assert isinstance(message, dict)
        return _record(base64.b64decode(message.get("data", "")), journal, sequence)

    async def publish(self, facts: Sequence[api.Record], expected_sequence: int) -> int:
        """
        Publish facts behind the expected last sequence; return the stream's last one then.

        A few go one by one, pipelined, each with its own expectation; more go as one atomic batch
        of at most BATCH_MAX. What is asked for while others wait for their answers is sent behind
        theirs. Raises OutOfSequence where somebody else published, Away where the answer did not come
        or was another refusal: read the tail again.
        """
        several = len(facts) >= BATCH_MIN
        send = self._send_batch if several else self._send_each
        # The first of a batch asks, too, so that one that cannot begin says so at once.
        count = 2 if several else len(facts)
        asked: list[tuple[str, asyncio.Future[Msg]]] = []
        try:
            async with self._sending:
                asked += [self._expect() for _ in range(count)]
                await send(facts, expected_sequence, [reply for reply, _ in asked])
            # Its time begins when those before it have their answers.
            async with self._answering, asyncio.timeout(ANSWER_SECONDS_MAX):
                for _, answer in asked:
                    _check(await answer)
        except FAULTS as error:
            raise Away(f"{len(facts)} facts were not answered: {error!r}") from error
        finally:
            self._forget(*(reply for reply, _ in asked))
        return expected_sequence + len(facts)

    @asynccontextmanager
    async def follow(self, journal: str, from_sequence: int) -> AsyncIterator[Following]:
        """
        Read a stream from a sequence, without acknowledgements.

        Gives a function that waits so many seconds for what comes next (an empty list where
        nothing did). Away where the consumer is lost: make another from one's own checkpoint.
        """
        client, stream = self._reached(), stream_name(journal)
        pull = _Pull(client, journal, stream, f"{self.name}-{uuid.uuid4().hex}", client.new_inbox())
        try:
            subscription = await client.subscribe(pull.inbox, cb=pull.take)
        except FAULTS as error:
            raise Away(f"no inbox for {stream}: {error!r}") from error
        self._pulls.add(pull)
        try:
            await self._create_consumer(pull, from_sequence)
            yield pull.next
        finally:
            self._pulls.discard(pull)
            try:
                await subscription.unsubscribe()
                # Nobody waits for the answer: a consumer that stays ends by its inactivity.
                await client.publish(
                    f"$JS.API.CONSUMER.DELETE.{stream}.{pull.consumer}",
                    reply=f"{self._inbox}.deleted",
                )
            except FAULTS:
                _log.debug("consumer %s is left to its inactivity", pull.consumer)

    async def nudge(self, journal: str) -> None:
        """Tell other processes of the service that its journal has grown; it may get lost."""
        try:
            await self._reached().publish(nudge_subject(journal))
        except (Away, *FAULTS):
            return

    async def on_nudge(self, journal: str, listener: Callable[[], None]) -> None:
        """Have a function called at each nudge, also on later connections."""
        self._listeners[journal] = listener
        if self.ready:
            await self._listen(self._client, journal, listener)

    async def _send_each(
        self, facts: Sequence[api.Record], expected: int, replies: Sequence[str]
    ) -> None:
        client = self._reached()
        for place, fact in enumerate(facts):
            headers = headers_of(fact)
            headers["Nats-Expected-Last-Sequence"] = str(expected + place)
            body = fact.SerializeToString()
            await client.publish(subject_of(fact), body, reply=replies[place], headers=headers)

    async def _send_batch(
        self, facts: Sequence[api.Record], expected: int, replies: Sequence[str]
    ) -> None:
        client, token = self._reached(), uuid.uuid4().hex
        begun, done = replies
        asking = {1: begun, len(facts): done}
        for place, fact in enumerate(facts, start=1):
            headers = headers_of(fact)
            headers["Nats-Batch-Id"] = token
            headers["Nats-Batch-Sequence"] = str(place)
            if place == 1:
                headers["Nats-Expected-Last-Sequence"] = str(expected)
            if place == len(facts):
                headers["Nats-Batch-Commit"] = "1"
            body = fact.SerializeToString()
            await client.publish(
                subject_of(fact), body, reply=asking.get(place, ""), headers=headers
            )

    async def _create_consumer(self, pull: _Pull, from_sequence: int) -> None:
        try:
            await self._api(
                f"CONSUMER.CREATE.{pull.stream}.{pull.consumer}",
                {
                    "stream_name": pull.stream,
                    "config": {
                        "name": pull.consumer,
                        "deliver_policy": "by_start_sequence",
                        "opt_start_seq": from_sequence,
                        "ack_policy": "none",
                        "replay_policy": "instant",
                        "mem_storage": True,
                        "num_replicas": 1,
                        "inactive_threshold": int(CONSUMER_IDLE_SECONDS * 1e9),
                    },
                },
                CONSUMER_SECONDS_MAX,
            )
        except _NotFound as error:
            raise Away(f"there is no {pull.stream}") from error

    async def _api(
        self, operation: str, body: dict[str, object], seconds: float = ANSWER_SECONDS_MAX
    ) -> dict[str, object]:
        answer = await self._ask(f"$JS.API.{operation}", json.dumps(body).encode(), None, seconds)
        found: dict[str, object] = json.loads(answer.data or b"{}")
        error = found.get("error")
        if isinstance(error, dict):
            if error.get("err_code") in _NOT_FOUND:
                raise _NotFound(operation)
            # A stream of that name is there with another configuration: it is kept as it is.
            if error.get("err_code") != _NAME_IN_USE:
                raise Away(f"{operation}: {error.get('description')}")
        return found

    async def _ask(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str] | None,
        seconds: float = ANSWER_SECONDS_MAX,
    ) -> Msg:
        client = self._reached()
        reply, answer = self._expect()
        try:
            await client.publish(subject, body, reply=reply, headers=headers)
            async with asyncio.timeout(seconds):
                return await answer
        except FAULTS as error:
            raise Away(f"{subject} was not answered: {error!r}") from error
        finally:
            self._forget(reply)

    def _expect(self) -> tuple[str, asyncio.Future[Msg]]:
        reply = f"{self._inbox}.{uuid.uuid4().hex}"
        self._answers[reply] = asyncio.get_running_loop().create_future()
        return reply, self._answers[reply]

    def _forget(self, *replies: str) -> None:
        for reply in replies:
            answer = self._answers.pop(reply, None)
            if answer is None or answer.cancel() or answer.cancelled():
                # Who waited too long for it has cancelled it.
                continue
            # An answer that nobody came to read is no fault.
            answer.exception()

    async def _answer(self, message: Msg) -> None:
        answer = self._answers.get(message.subject)
        if answer is None or answer.done():
            return
        if (message.headers or {}).get("Status") == "503":
            answer.set_exception(Away(f"nobody answers for {message.subject}"))
        else:
            answer.set_result(message)

    def _reached(self) -> Client:
        if not self.ready:
            raise Away(f"{self._url} is not connected")
        return self._client

    async def _connect(self) -> None:
        """Connect, however long it takes; nats-py tries again by itself."""
        client = self._client = _Client()
        try:
            await client.connect(
                self._url,
                name=self.name,
                nkeys_seed=str(self._seed_file) if self._seed_file else None,
                inbox_prefix=f"_INBOX_{self.name}".encode(),
                max_reconnect_attempts=-1,
                reconnect_time_wait=CONNECT_AGAIN_SECONDS,  # type: ignore[arg-type]  # a float works
                connect_timeout=CONNECT_SECONDS_MAX,  # type: ignore[arg-type]  # a float works
                ping_interval=5,
                error_cb=self._complain,
                disconnected_cb=self._lost,
                reconnected_cb=self._found,
                closed_cb=self._lost,
            )
            inbox = client.new_inbox()
            await client.subscribe(f"{inbox}.*", cb=self._answer)
            for journal, listener in self._listeners.items():
                await self._listen(client, journal, listener)
        except FAULTS as error:
            await self._complain(error)
            await self._close()
            return
        self._inbox = inbox
        await self._found()

    async def _listen(self, client: Client, journal: str, listener: Callable[[], None]) -> None:
        async def heard(message: Msg) -> None:
            del message
            listener()

        await client.subscribe(nudge_subject(journal), cb=heard)

    async def _close(self) -> None:
        self._inbox = ""
        self._connected.clear()
        if not self._client.is_closed:
            try:
                async with asyncio.timeout(CONNECT_SECONDS_MAX):
                    await self._client.close()
            except FAULTS:
                return

    async def _found(self) -> None:
        self._complaint = ""
        self._connected.set()

    async def _lost(self) -> None:
        """Tell everybody who waits, so that nobody waits for a deadline."""
        self._connected.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Away("the connection was lost"))
                # Who asked may have gone meanwhile; then there is nobody to be told.
                answer.exception()
        for pull in self._pulls:
            pull.lose("the connection was lost")

    async def _complain(self, error: Exception) -> None:
        """Say each new trouble once, not at each attempt."""
        level = logging.DEBUG if repr(error) == self._complaint else logging.WARNING
        self._complaint = repr(error)
        _log.log(level, "NATS of %s at %s: %r", self.name, self._url, error)


class _NotFound(Exception):
    """There is no such stream, or no such message in it."""


@dataclass(slots=True, eq=False)
class _Pull:
    """Asks for the next messages again and again; heartbeats tell a consumer that is lost."""

    client: Client
    journal: str
    stream: str
    consumer: str
    inbox: str
    waiting: deque[Msg] = field(default_factory=deque)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    # Messages that were asked for and have not come.
    asked: int = 0
    heard: float = 0.0
    lost: str = ""

    async def take(self, message: Msg) -> None:
        """Take what the server sends: a message, a heartbeat, or the end of what was asked."""
        self.heard = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self.asked -= 1
            self.waiting.append(message)
        elif status in ("404", "408") or headers.get("Description") in _USED_UP:
            self.asked -= int(headers.get("Nats-Pending-Messages", self.asked))
        elif status != "100":
            self.lose(f"{status} {headers.get('Description', '')}")
        self.woken.set()

    def lose(self, why: str) -> None:
        """End it; whoever waits hears Away."""
        self.lost = why
        self.woken.set()

    async def next(self, seconds: float) -> list[api.Record]:
        """Wait for what comes next; an empty list where nothing did in so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        try:
            while True:
                if self.lost:
                    raise Away(f"consumer on {self.stream}: {self.lost}")
                if self.asked <= PULL_MAX // 2:
                    await self._ask()
                if self.waiting:
                    return self._drain()
                self.woken.clear()
                now = loop.time()
                if now >= self.heard + LOST_SECONDS:
                    raise Away(f"consumer on {self.stream}: silent")
                if now >= deadline:
                    return []
                try:
                    async with asyncio.timeout(min(deadline, self.heard + LOST_SECONDS) - now):
                        await self.woken.wait()
                except TimeoutError:
                    continue
        except (Foreign, *FAULTS) as error:
            raise Away(f"consumer on {self.stream}: {error!r}") from error

    async def _ask(self) -> None:
        body = {
            "batch": PULL_MAX,
            "max_bytes": PULL_BYTES_MAX,
            "expires": int(PULL_SECONDS * 1e9),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
        }
        self.asked += PULL_MAX
        self.heard = asyncio.get_running_loop().time()
        await self.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}",
            json.dumps(body).encode(),
            reply=self.inbox,
        )

    def _drain(self) -> list[api.Record]:
        records: list[api.Record] = []
        while self.waiting and len(records) < BATCH_MAX:
            message = self.waiting.popleft()
            # $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>…, with two more parts before in a domain.
            parts = message.reply.split(".")
            sequence = int(parts[5] if len(parts) == 9 else parts[7])
            records.append(_record(message.data, self.journal, sequence))
        return records


def _record(data: bytes, journal: str, sequence: int) -> api.Record:
    try:
        record = api.Record.FromString(data)
    except DecodeError as error:
        raise Foreign(f"message {sequence} in the stream of {journal} is no fact") from error
    if (record.journal, record.position) != (journal, sequence):
        raise Foreign(
            f"message {sequence} in the stream of {journal} is position {record.position} of "
            f"{record.journal or 'no journal'}"
        )
    return record


def _check(answer: Msg) -> None:
    error = json.loads(answer.data).get("error") if answer.data else None
    if error is None:
        return
    if error.get("err_code") in _WRONG_SEQUENCE:
        raise OutOfSequence(str(error.get("description")))
    raise Away(str(error.get("description")))
