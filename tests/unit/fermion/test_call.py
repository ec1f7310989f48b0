"""A call is sent again where that is safe, as the same request, and reads what was written."""

from __future__ import annotations

import time

import pytest
from google.rpc import code_pb2

import fermion
from fermion import errors
from fermion.api.instances import v1 as api
from fermion.context import Positions
from tests.unit.fermion.platform import Platform, busy, later, refuse

LAB = "projects/acme/instances/lab"


def client(platform: Platform, timeout: float = 10.0) -> fermion.Client:
    return fermion.Client(address=platform.address, token="jwt", timeout=timeout)


def change(state: api.State.ValueType, token: str) -> api.WatchInstancesResponse:
    return api.WatchInstancesResponse(
        change=api.WatchInstancesResponse.CHANGE_UPDATED,
        instance=api.Instance(name=LAB, uid="inst_1", status=api.Status(state=state)),
        resume_token=token,
    )


def test_a_mutation_whose_answer_was_lost_is_sent_again_as_the_same_request(
    platform: Platform,
) -> None:
    platform.turns.extend([busy, busy])
    with client(platform) as it:
        it.instances.create("acme", "lab", api.Instance())
    sent = platform.sent("CreateInstance")
    ids = {getattr(call.request, "request_id", "") for call in sent}
    assert len(sent) == 3
    assert len(ids) == 1
    assert "" not in ids


def test_two_mutations_are_two_requests(platform: Platform) -> None:
    with client(platform) as it:
        it.instances.create("acme", "one", api.Instance())
        it.instances.create("acme", "two", api.Instance())
    first, second = platform.sent("CreateInstance")
    assert first.metadata["x-request-id"] != second.metadata["x-request-id"]


def test_a_call_says_who_calls_and_under_which_request_id_it_is_found(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with client(platform) as it:
        it.instances.create("acme", "lab", api.Instance())
    (call,) = platform.calls
    assert call.metadata["authorization"] == "Bearer jwt"
    assert call.metadata["x-request-id"] == getattr(call.request, "request_id", "")
    assert call.metadata["traceparent"].startswith("00-0af7651916cd43dd")


def test_what_was_answered_last_goes_with_the_next_call(platform: Platform) -> None:
    with client(platform) as it:
        it.instances.create("acme", "lab", api.Instance())
        it.instances.get(LAB)
    assert "fermion-after" not in platform.calls[0].metadata
    assert platform.calls[1].metadata["fermion-after"] == "instances/0=3"


@pytest.mark.parametrize("reason", ["READ_BEHIND", "CALLERS_BEHIND", "DATABASE_UNAVAILABLE"])
def test_a_call_that_may_go_through_in_a_moment_is_sent_again(
    platform: Platform, reason: str
) -> None:
    platform.turns.append(later(reason))
    with client(platform) as it:
        it.journals.resume("instances/scheduler", "scheduler/0")
    assert len(platform.sent("ResumeReader")) == 2


def test_too_many_races_are_run_again(platform: Platform) -> None:
    platform.turns.append(refuse(code_pb2.ABORTED, "TOO_MANY_RACES"))
    with client(platform) as it:
        it.instances.create("acme", "lab", api.Instance())
    assert len(platform.calls) == 2


def test_an_unknown_outcome_is_asked_for_with_the_same_request_id(platform: Platform) -> None:
    platform.turns.append(refuse(code_pb2.UNKNOWN, "OUTCOME_UNKNOWN"))
    with client(platform) as it:
        it.instances.create("acme", "lab", api.Instance())
    first, second = platform.calls
    assert first.request == second.request


def test_what_has_no_request_id_and_changes_something_is_not_sent_twice(
    platform: Platform,
) -> None:
    platform.turns.append(busy)
    with client(platform) as it, pytest.raises(errors.Unavailable):
        it.journals.retry("instances/scheduler", "instance/inst_1")
    assert len(platform.calls) == 1


def test_what_an_operator_does_is_one_request_however_often_it_is_sent(platform: Platform) -> None:
    platform.turns.append(busy)
    with client(platform) as it:
        it.journals.resume("instances/scheduler", "scheduler/0")
    first, second = platform.sent("ResumeReader")
    assert first.request == second.request


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (code_pb2.INVALID_ARGUMENT, "FIELD_INVALID"),
        (code_pb2.ABORTED, "ETAG_MISMATCH"),
        (code_pb2.INTERNAL, "INTERNAL"),
        (code_pb2.PERMISSION_DENIED, "PROJECT_ROLE_MISSING"),
    ],
)
def test_a_refusal_is_final(platform: Platform, code: int, reason: str) -> None:
    platform.turns.append(refuse(code, reason))
    with client(platform) as it, pytest.raises(errors.Error) as caught:
        it.instances.create("acme", "lab", api.Instance())
    assert caught.value.reason == reason
    assert len(platform.calls) == 1


def test_the_deadline_holds_over_all_attempts(platform: Platform) -> None:
    platform.turns.extend([later("READ_BEHIND")] * 100)
    began = time.monotonic()
    with client(platform, timeout=0.6) as it, pytest.raises(errors.Unavailable):
        it.instances.get(LAB)
    assert time.monotonic() - began < 2
    assert len(platform.calls) > 1


def test_positions_of_a_platform_that_is_another_one_now_are_let_go(platform: Platform) -> None:
    positions = Positions()
    positions.remember({"instances/0": 999})
    platform.turns.extend([later("READ_BEHIND")] * 100)
    it = fermion.Client(address=platform.address, timeout=0.3, positions=positions)
    with it, pytest.raises(errors.Unavailable):
        it.instances.get(LAB)
    assert positions.newest() == {}


def test_who_saw_what_a_reader_will_not_reach_is_told_at_once_and_asks_for_less_then(
    platform: Platform,
) -> None:
    positions = Positions()
    positions.remember({"instances/0": 999})
    platform.turns.append(refuse(code_pb2.FAILED_PRECONDITION, "READ_HALTED"))
    with fermion.Client(address=platform.address, positions=positions) as it:
        with pytest.raises(errors.Error) as caught:
            it.instances.get(LAB)
        assert caught.value.reason == "READ_HALTED"
        it.instances.create("acme", "lab", api.Instance())
    first, second = platform.calls
    assert first.metadata["fermion-after"] == "instances/0=999"
    assert "fermion-after" not in second.metadata


def test_a_server_that_was_never_there_is_not_waited_for_long(platform: Platform) -> None:
    began = time.monotonic()
    with (
        fermion.Client(address="127.0.0.1:1", timeout=60) as it,
        pytest.raises(errors.Unavailable) as caught,
    ):
        it.instances.get(LAB)
    assert time.monotonic() - began < 10
    assert caught.value.reason == "SERVER_NOT_THERE"
    assert "127.0.0.1:1" in caught.value.message
    assert "fermion up" in caught.value.next_step


def test_a_list_goes_through_all_pages(platform: Platform) -> None:
    with client(platform) as it:
        for number in range(5):
            it.instances.create("acme", f"lab-{number}", api.Instance())
        found = [one.name[-1] for one in it.instances.list("acme")]
    assert found == ["0", "1", "2", "3", "4"]


def test_a_watch_that_breaks_goes_on_where_it_was(platform: Platform) -> None:
    platform.watches.append([change(api.STATE_PENDING, "t1"), change(api.STATE_STARTING, "t2")])
    platform.watches.append([change(api.STATE_RUNNING, "t3")])
    with client(platform) as it:
        watching = it.instances.watch("acme")
        states = [next(watching).instance.status.state for _ in range(3)]
    assert states == [api.STATE_PENDING, api.STATE_STARTING, api.STATE_RUNNING]
    tokens = [getattr(call.request, "resume_token", "") for call in platform.sent("WatchInstances")]
    assert tokens == ["", "t2"]


def test_waiting_ends_with_the_state_that_was_waited_for(platform: Platform) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    platform.watches.append([change(api.STATE_PENDING, "t1"), change(api.STATE_RUNNING, "t2")])
    with client(platform) as it:
        found = it.instances.wait(LAB, api.STATE_RUNNING, 10)
    assert found.status.state == api.STATE_RUNNING


def test_waiting_for_what_fails_ends_at_once(platform: Platform) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    platform.watches.append([change(api.STATE_FAILED, "t1")])
    with client(platform) as it, pytest.raises(errors.WorkloadFailed):
        it.instances.wait(LAB, api.STATE_RUNNING, 10)


def test_waiting_for_what_has_stopped_and_shall_not_run_ends_at_once(platform: Platform) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    stopped = change(api.STATE_STOPPED, "t1")
    stopped.instance.status.desired_state = api.STATE_STOPPED
    stopped.instance.status.reason.code = "MAX_DURATION"
    stopped.instance.status.reason.message = "It ran as long as it may."
    platform.watches.append([stopped])
    with client(platform) as it, pytest.raises(errors.WorkloadFailed, match="stopped: It ran"):
        it.instances.wait(LAB, api.STATE_RUNNING, 10)


def test_waiting_for_what_stops_in_order_to_start_again_goes_on(platform: Platform) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    again = change(api.STATE_STOPPED, "t1")
    again.instance.status.desired_state = api.STATE_RUNNING
    platform.watches.append([again, change(api.STATE_RUNNING, "t2")])
    with client(platform) as it:
        assert it.instances.wait(LAB, api.STATE_RUNNING, 10).status.state == api.STATE_RUNNING


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (api.STATE_PENDING, api.STATE_RUNNING),
        (api.STATE_STARTING, api.STATE_RUNNING),
        (api.STATE_STOPPING, api.STATE_STOPPED),
    ],
)
def test_waiting_for_what_has_come_and_gone_ends_with_what_is_behind_it(
    platform: Platform, wanted: api.State.ValueType, seen: api.State.ValueType
) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    platform.watches.append([change(seen, "t1")])
    with client(platform) as it:
        assert it.instances.wait(LAB, wanted, 10).status.state == seen


def test_waiting_in_vain_says_what_it_is_instead(platform: Platform) -> None:
    platform.instances[LAB] = api.Instance(name=LAB)
    platform.watches.append([change(api.STATE_PENDING, "t1")])
    with client(platform) as it, pytest.raises(errors.Timeout, match="but PENDING"):
        it.instances.wait(LAB, api.STATE_RUNNING, 0.3)


def test_services_of_a_context_are_called_where_they_are(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMION_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("FERMION_ADDRESS_INSTANCES", platform.address)
    with fermion.Client(token="jwt") as it:
        assert list(it.instances.list("acme")) == []


async def test_the_client_of_asyncio_does_the_same(platform: Platform) -> None:
    platform.turns.append(busy)
    platform.watches.append([change(api.STATE_PENDING, "t1")])
    platform.watches.append([change(api.STATE_RUNNING, "t2")])
    async with fermion.AsyncClient(address=platform.address, token="jwt") as it:
        await it.instances.create("acme", "lab", api.Instance())
        names = [one.name async for one in it.instances.list("acme")]
        found = await it.instances.wait(LAB, api.STATE_RUNNING, 10)
        with pytest.raises(errors.NotFound):
            await it.instances.get("projects/acme/instances/lap")
    assert names == [LAB]
    assert found.status.state == api.STATE_RUNNING
    first, second = platform.sent("CreateInstance")
    assert first.request == second.request
    assert platform.sent("ListInstances")[0].metadata["fermion-after"] == "instances/0=3"
