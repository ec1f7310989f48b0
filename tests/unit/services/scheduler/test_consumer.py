"""What the scheduler does about what modules declare."""

from __future__ import annotations

from google.protobuf.message import Message

from fermion.api.workload import v1 as workload
from services.instances import aggregate as instances
from services.scheduler.consumer import Declarations
from tests.unit.services.history import History, names
from tests.unit.services.scheduler.test_aggregate import DECLARED, enqueue, told


async def heard(said: Message, so_far: History) -> list[str]:
    """Let the scheduler hear one fact of a module, and tell what it says."""
    module = History("instances/0", instances.place)
    module.say([said])
    found: list[Message] = []
    for reaction in await Declarations("instances").react(module.records[0]):
        (stream,) = reaction.streams
        found += reaction.decide(reaction.fold(so_far.stream(stream)))
    return names(found)


def test_the_reader_is_named_after_what_it_reads() -> None:
    reader = Declarations("training")
    assert (reader.name, reader.source) == ("scheduler/training", "training")


async def test_a_declaration_queues() -> None:
    said = workload.WorkloadDeclared(workload=DECLARED)
    assert await heard(said, told()) == ["WorkloadQueued"]


async def test_a_declaration_heard_twice_queues_once() -> None:
    said = workload.WorkloadDeclared(workload=DECLARED)
    assert await heard(said, told(enqueue)) == []


async def test_a_withdrawal_lets_go_of_what_waits() -> None:
    said = workload.WorkloadWithdrawn(uid="wkl_1", project="acme")
    assert await heard(said, told(enqueue)) == ["WorkloadRefused"]


async def test_new_labels_restate_what_waits() -> None:
    said = workload.WorkloadRelabelled(uid="wkl_1", project="acme", labels={"team": "x"})
    assert await heard(said, told(enqueue)) == ["WorkloadQueued"]
