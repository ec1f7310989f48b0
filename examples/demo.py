"""
The main job, from nothing, with a check behind every sentence.

    make demo

It starts the platform in a folder of its own and works with it as a user would: command line, plain
gRPC, a second client, a subscriber on NATS; a program and a notebook that really run; limits and
what waits for them. It kills every process, in the middle of the night and in the middle of 500
creates, and counts what is left. At the end it reads the bill, and computes it again from what the
programs and their witnesses wrote down. It exits with 1 if anything that it claims is not so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import bill
import grpc
import nats
import psutil
import running
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from story import FERMION, Answer, Platform, Story, rows

from fermion.api.instances import v1 as instances
from fermion.api.instances.v1 import service_pb2_grpc as instances_grpc
from fermion.api.journal import v1 as journal
from fermion.api.workload import v1 as workload

CREATES = 500
# What the chapters before and after those create.
OTHERS = 9
CALLERS = 32
PROJECT = "demo"
# More GPUs than a laptop has: what is created in the storm waits, and its count stays what it is.
WAITING = instances.Resources(gpu_milli=8000, cpu_milli=500, memory_bytes=512 * 1024 * 1024)


async def create_many(
    platform: Platform, count: int, prefix: str, disturb: Callable[[], None]
) -> Counter[str]:
    """
    Create instances from many callers with retries while something is done to the platform.

    Returns what the client was told: its own ledger of acknowledged calls.
    """
    ledger: Counter[str] = Counter()
    numbers = iter(range(count))
    metadata = (("authorization", f"Bearer {platform.token}"),)
    disturbed = False

    async def caller(stub: instances_grpc.InstanceServiceAsyncStub) -> None:
        nonlocal disturbed
        for number in numbers:
            if number == count // 2 and not disturbed:
                disturbed = True
                disturb()
            request = instances.CreateInstanceRequest(
                parent=f"projects/{PROJECT}",
                instance_id=f"{prefix}-{number:03}",
                request_id=str(uuid.uuid4()),
                instance=instances.Instance(
                    spec=instances.Spec(
                        kind=instances.KIND_CUSTOM,
                        image="host",
                        command=["sleep", "60"],
                        resources=WAITING,
                    )
                ),
            )
            deadline = time.monotonic() + 90
            while True:
                try:
                    answer = await stub.CreateInstance(request, metadata=metadata, timeout=10)
                except grpc.aio.AioRpcError as error:
                    again = (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.UNKNOWN,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        grpc.StatusCode.ABORTED,
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        grpc.StatusCode.CANCELLED,
                    )
                    if error.code() not in again or time.monotonic() > deadline:
                        raise
                    ledger["retries"] += 1
                    await asyncio.sleep(0.1)
                    continue
                ledger[answer.instance.name] += 1
                break

    options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(platform.address, options=options) as channel:
        stub = instances_grpc.InstanceServiceStub(channel)
        async with asyncio.TaskGroup() as group:
            for place in range(CALLERS):
                group.create_task(caller(stub), name=f"caller {place}")
    return ledger


async def count_on_nats(platform: Platform) -> tuple[list[int], list[int], Counter[str]]:
    """Subscribe as an outsider would: one project's facts of one service, and what they count to."""
    port = json.loads((platform.home / "nats" / "nats.conf").read_text())["port"]
    client = await nats.connect(
        f"nats://127.0.0.1:{port}",
        nkeys_seed=str(platform.home / "nats" / "keys" / "subscriber.nk"),
        inbox_prefix=b"_INBOX_subscriber",
    )
    positions: list[int] = []
    places: list[int] = []
    types: Counter[str] = Counter()
    try:
        stream = client.jetstream()
        consumer = await stream.add_consumer(
            "FERMION_instances_0",
            ConsumerConfig(
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.ALL,
                mem_storage=True,
                inactive_threshold=30.0,
            ),
        )
        pull = await stream.pull_subscribe_bind(consumer.name, "FERMION_instances_0")
        pending = consumer.num_pending or 0
        while len(positions) < pending:
            for message in await pull.fetch(500, timeout=5):
                record = journal.Record.FromString(message.data)
                assert message.headers is not None
                assert int(message.headers["ce-id"]) == record.position
                positions.append(record.position)
                if record.project == PROJECT:
                    places.append(record.project_position)
                    types[record.type.rsplit(".", 1)[-1]] += 1
    finally:
        await client.close()
    return positions, places, types


def walk(story: Story, platform: Platform) -> None:
    """Tell the story."""
    story.chapter(
        "Start: PostgreSQL, NATS, four services and a cluster of this machine, from nothing"
    )
    platform.up()
    names = {process.name() for process in platform.processes()}
    print(f"  running below the supervisor: {', '.join(sorted(names))}")
    story.check("the platform answers a signed call", platform.cli("status").code == 0)

    story.chapter("A project and its people, by command line")
    platform.cli("projects", "create", PROJECT, "--display-name", "The demo")
    platform.cli("users", "create", "ada", "--display-name", "Ada", "--email", "ada@example.org")
    platform.cli("members", "set", "ada", "editor", "-p", PROJECT)
    members = rows(platform.cli("members", "list", "-p", PROJECT, "-o", "json", show=False))
    roles = {str(member["name"]).rsplit("/", 1)[-1]: member["role"] for member in members}
    story.check(
        "the creator is the project's admin, and ada its editor",
        roles == {"admin": "ROLE_ADMIN", "ada": "ROLE_EDITOR"},
        roles,
    )
    platform.cli("projects", "use", PROJECT)

    story.chapter("Instances, by command line and by plain gRPC, watched by a second client")
    watcher = subprocess.Popen(
        [FERMION, "instances", "watch", "-o", "json"],
        env=platform.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    platform.cli(
        *("instances", "create", "lab", "--kind", "notebook", "--gpu", "8"),
        *("--label", "team=vision"),
    )
    with grpc.insecure_channel(platform.address) as channel:
        stub = instances_grpc.InstanceServiceStub(channel)
        asked = instances.CreateInstanceRequest(
            parent=f"projects/{PROJECT}",
            instance_id="plain",
            request_id=str(uuid.uuid4()),
            instance=instances.Instance(
                spec=instances.Spec(
                    kind=instances.KIND_CUSTOM,
                    image="host",
                    command=["python3", "-m", "http.server"],
                    resources=WAITING,
                    ports=[workload.Port(name="web", number=8000)],
                )
            ),
        )
        bearer = (("authorization", f"Bearer {platform.token}"),)
        first = stub.CreateInstance(asked, metadata=bearer)
        again = stub.CreateInstance(asked, metadata=bearer)
        story.check(
            "the same request sent twice over plain gRPC is one instance",
            first.instance.uid == again.instance.uid,
            (first.instance.uid, again.instance.uid),
        )
        asked.instance.spec.command[:] = ["false"]
        try:
            stub.CreateInstance(asked, metadata=bearer)
            code: object = "accepted"
        except grpc.RpcError as error:
            code = error.code()
        story.check(
            "the same request_id with another body is refused",
            code == grpc.StatusCode.INVALID_ARGUMENT,
            code,
        )
    waits_for(
        story,
        platform,
        "lab",
        "more GPUs than there are: the instance waits, and says why",
        '"code": "CAPACITY"',
    )
    platform.cli("instances", "list")
    platform.cli("instances", "stop", "lab")
    waits_for(
        story, platform, "lab", "stopping what was never admitted ends in STOPPED", "STATE_STOPPED"
    )
    platform.cli("instances", "start", "lab")
    waits_for(story, platform, "lab", "a start declares the second attempt", '"attempt": 2')
    platform.cli("events", "list", "lab")
    time.sleep(0.5)
    watcher.send_signal(signal.SIGINT)
    seen = watcher.communicate(timeout=20)[0]
    story.check(
        "the second client saw it pend, stop and pend again",
        all(word in seen for word in ("lab", "STATE_PENDING", "STATE_STOPPED", "plain")),
        seen[-400:],
    )

    story.chapter("Three wrong inputs, and their answers")
    wrong: Sequence[tuple[str, tuple[str, ...], str]] = (
        (
            "nine GPUs name the field and the rule",
            ("instances", "create", "big", "--kind", "notebook", "--gpu", "9"),
            "gpu",
        ),
        ("a name that is nearly right is recognised", ("instances", "get", "lap"), "lab"),
        (
            "a server that is not there is named, with what to do",
            ("instances", "list"),
            "fermion up",
        ),
    )
    for sentence, words, expected in wrong:
        if "server" in sentence:
            away = {
                **platform.environment,
                "FERMION_ADDRESS": "127.0.0.1:1",
                "FERMION_TOKEN": platform.token,
            }
            print("\n  $ FERMION_ADDRESS=127.0.0.1:1 fermion instances list")
            done = subprocess.run(
                [FERMION, *words, "--timeout", "3"],
                env=away,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            answer = Answer(done.returncode, done.stdout, done.stderr)
            for line in answer.err.rstrip().splitlines()[:8]:
                print(f"    {line}")
        else:
            answer = platform.cli(*words)
        story.check(
            sentence,
            answer.code not in (0, 1) and expected in answer.err and "Traceback" not in answer.err,
            (answer.code, answer.err),
        )


def waits_for(story: Story, platform: Platform, name: str, sentence: str, word: str) -> None:
    """Check that an instance comes to show a word within ten seconds."""
    deadline = time.monotonic() + 10
    shown = ""
    while time.monotonic() < deadline:
        shown = platform.cli("instances", "get", name, "-o", "json", show=False).out
        if word in shown:
            break
        time.sleep(0.1)
    story.check(sentence, word in shown, shown[-600:])


def disaster(story: Story, platform: Platform) -> None:
    """Kill everything in the middle of the work, and count."""
    story.chapter(
        f"SIGKILL of every process, in the middle of {CREATES} creates from {CALLERS} callers"
    )
    killed: list[str] = []

    def kill_all() -> None:
        for process in platform.processes():
            try:
                killed.append(process.name())
                process.kill()
            except psutil.NoSuchProcess:
                continue

    began = time.monotonic()
    ledger = asyncio.run(create_many(platform, CREATES, "load", kill_all))
    seconds = time.monotonic() - began
    retries = ledger.pop("retries", 0)
    print(
        f"  killed: {dict(Counter(killed))}; {retries} calls were retried; {seconds:.1f} s in all"
    )
    story.check("there were calls in flight when everything died", retries > 0, retries)
    story.check(
        f"every one of the {CREATES} calls was acknowledged in the end",
        len(ledger) == CREATES,
        len(ledger),
    )

    platform.answered(60)
    listed = rows(platform.cli("instances", "list", "-o", "json", show=False))
    loads = Counter(str(row["name"]) for row in listed if "/load-" in str(row["name"]))
    story.check("each is there exactly once", loads == ledger, len(loads))

    story.chapter("The supervisor is killed too; the platform is started again on the same folder")
    below = platform.processes()
    assert platform.process is not None
    platform.process.kill()
    platform.process.wait()
    _, left = psutil.wait_procs(below, timeout=15)
    story.check("nothing is left behind by a killed supervisor", not left, left)
    platform.up()
    again = rows(platform.cli("instances", "list", "-o", "json", show=False))
    story.check("a new start finds all of it", len(again) == len(listed), (len(again), len(listed)))


def proofs(story: Story, platform: Platform) -> None:
    """Audit, rebuild, and let a stranger count."""
    story.chapter("Audit, rebuild from zero, and a stranger who counts")
    deadline = time.monotonic() + 60
    audit = platform.cli("audit", show=False)
    while audit.code != 0 and time.monotonic() < deadline:
        # Readers may still be catching up with what the load left; an audit at rest has to hold.
        time.sleep(0.5)
        audit = platform.cli("audit", show=False)
    platform.cli("audit")
    story.check("every equality of the audit holds", audit.code == 0, audit.out[-800:])

    for name in ("projects/0", "instances/0", "scheduler/0"):
        answer = platform.cli("journal", "rebuild", name, "-o", "json")
        found = json.loads(answer.out or "{}")
        live, rebuilt = (
            found.get("liveHash", found.get("live_hash")),
            found.get("rebuiltHash", found.get("rebuilt_hash")),
        )
        story.check(
            f"{name}: folded from zero, the read model has the same hash",
            bool(live) and live == rebuilt,
            answer,
        )

    positions, places, types = asyncio.run(count_on_nats(platform))
    journals = platform.cli("journal", "list", "-o", "json", show=False)
    head = next(
        int(str(row["head"])) for row in rows(journals) if row.get("journal") == "instances/0"
    )
    print(
        f"  a subscriber on NATS read {len(positions)} facts of instances/0, "
        f"{len(places)} of {PROJECT}: {dict(types.most_common(5))}"
    )
    story.check(
        "its positions are 1..N, each once, and N is the journal's head",
        positions == list(range(1, head + 1)),
        (len(positions), head),
    )
    story.check(
        "and one project's facts are 1..M by their own count",
        places == list(range(1, len(places) + 1)),
        len(places),
    )
    created = types["InstanceCreated"]
    story.check(f"among them {CREATES + OTHERS} creations", created == CREATES + OTHERS, created)


def main() -> int:
    """Run the demo; 0 where everything it claimed was so."""
    # A shell that runs this in the background lets it, and all that it starts, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = os.environ.get("FERMION_DEMO_HOME")
    home = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="fermion-demo-"))
    home.mkdir(mode=0o700, exist_ok=True)
    story, platform = Story(), Platform(home)
    try:
        walk(story, platform)
        story.chapter(
            "A program of one's own: port, environment, files, a crash, a stop and a start"
        )
        running.program(story, platform)
        story.chapter("A notebook: JupyterLab in an environment of its own")
        running.notebook(story, platform)
        story.chapter("What has to wait, and why")
        running.waiting(story, platform)
        story.chapter("SIGKILL of every process of the platform, and not of what runs on it")
        running.outlives(story, platform, home)
        disaster(story, platform)
        proofs(story, platform)
        story.chapter("The bill: what it costs, why, and the same sum by hand")
        bill.bill(story, platform, home)
        story.chapter("Down")
        down = platform.cli("down")
        story.check("it drains and ends on `fermion down`", down.code == 0, down)
    finally:
        if platform.process is not None and platform.process.poll() is None:
            platform.process.terminate()
            try:
                platform.process.wait(30)
            except subprocess.TimeoutExpired:
                platform.process.kill()
        running.leave(platform)
        if not kept and not story.broken:
            shutil.rmtree(home, ignore_errors=True)
    for sentence in story.broken:
        print(f"\033[31mnot so: {sentence}\033[0m")
    if story.broken:
        print(f"the platform's folder is kept for a look: {home}")
    print(f"\n{story.held} checks held, {len(story.broken)} did not.")
    return 1 if story.broken else 0


if __name__ == "__main__":
    sys.exit(main())
