"""Every RPC, told what it should not be told: it answers at once, says why, and goes on."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.message import Message
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chassis.callers import rule_of
from fermion.api.projects import v1 as projects
from tests.fuzz.conftest import SECRET, Ground
from tests.fuzz.messages import Request, broken, every_method, forged, huge, odd, requests
from tests.fuzz.wire import Answer
from tests.stage import until

# A platform has a state, so what is asked again is not what was asked: no example is made smaller.
WALK: Final = settings(max_examples=15, phases=(Phase.generate,), report_multiple_bugs=False)
MIB4: Final = 4 * 2**20
# Of one call, on a machine that does other things, too.
HUGE_SECONDS_MAX: Final = 5.0
# What big messages leave behind in a process once they are answered; not one of them for each that came.
GROWTH_BYTES_MAX: Final = 50 * 2**20
METHODS: Final = {one.full_name.removeprefix("fermion.api."): one for one in every_method()}
# What no answer to a request may be, whatever is asked.
FAULTS: Final = ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS")
# A service that may say so to somebody who may not know.
TURNED_AWAY: Final = ("PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT")
REASONS: Final = set(
    re.findall(r"`([A-Z][A-Z0-9_]+)`", (Path(__file__).parents[2] / "proto/reasons.md").read_text())
)


def sound(ground: Ground, answer: Answer, request: Message | None = None) -> None:
    """An answer that helps who asked: no fault of ours, and where it is a refusal, all of it."""
    assert answer.code not in FAULTS, (answer, ground.stage.log())
    if answer.code == "OK":
        return
    assert answer.reason in REASONS, answer
    assert answer.message, answer
    assert answer.next_step, answer
    assert answer.request_id, answer
    if answer.code == "UNAVAILABLE":
        assert answer.retry_ms, answer
    if answer.code != "INVALID_ARGUMENT":
        return
    assert answer.violations, answer
    assert all(rule for _, rule in answer.violations), answer
    value = "" if request is None else value_of(request, answer.violations[0][0])
    assert answer.says(value[:30]), (answer, value)


def value_of(request: Message, path: str) -> str:
    """A field's value as a refusal should quote it; empty where it is no plain one."""
    found: object = request
    unsaid = False
    for name in path.split("."):
        known = found.DESCRIPTOR.fields_by_name.get(name) if isinstance(found, Message) else None
        if known is None or known.is_repeated:
            return ""
        found = getattr(found, name)
        unsaid = found == known.default_value
        if known.enum_type is not None and found in known.enum_type.values_by_number:
            found = known.enum_type.values_by_number[found].name
    # What was not said has no value to be quoted.
    return "" if isinstance(found, Message | bytes) or unsaid else str(found)


@dataclass(frozen=True, slots=True)
class Standing:
    """A process, and the memory that it has."""

    pid: int
    bytes: int


@pytest.fixture(scope="module", autouse=True)
def process(ground: Ground) -> Standing:
    """The process that is asked as it was before, which has to be the same one at the end."""
    found = ground.service()
    return Standing(found.pid, found.memory_info().rss)


@pytest.mark.parametrize("name", METHODS)
def test_a_request_of_any_kind_is_answered_or_refused(ground: Ground, name: str) -> None:
    method = METHODS[name]

    @WALK
    @given(request=requests(method.input_type, ground.names), who=st.sampled_from(("admin", "ada")))
    def ask(request: Request, who: str) -> None:
        answer = ground.wire.call(method, request.body + rehearsed, ground.metadata(who))
        sound(ground, answer, request.message)

    rehearsed = b""
    if method.name == "EnrolCluster":
        # One that is nowhere has a journal that nobody can read, and the audit says so.
        rehearsed = projects.EnrolClusterRequest(validate_only=True).SerializeToString()
    ask()


@pytest.mark.parametrize("name", METHODS)
def test_somebody_of_another_project_is_turned_away_and_hears_nothing(
    ground: Ground, name: str
) -> None:
    method = METHODS[name]
    rule = rule_of(method)

    @WALK
    @given(request=requests(method.input_type, ground.foreign))
    def ask(request: Request) -> None:
        body = request.body
        nobody = ground.wire.call(method, body, ())
        stranger = ground.wire.call(method, body, ground.metadata("stranger"))
        for answer in (nobody, stranger):
            sound(ground, answer)
            assert SECRET not in answer.message, answer
            assert not any(SECRET.encode() in one for one in answer.responses), answer
        if rule.platform == projects.PLATFORM_ROLE_ANONYMOUS:
            return
        assert nobody.reason == "TOKEN_MISSING", nobody
        if rule.role and not rule.self and not rule.bare:
            assert stranger.code in TURNED_AWAY, stranger

    ask()


def test_a_token_of_ones_own_making_is_refused(ground: Ground) -> None:
    for question in ground.questions:
        for token in forged(question.token):
            setattr(question.request, question.field, token)
            body = question.request.SerializeToString()
            answer = ground.wire.call(question.method, body, ground.metadata("admin"))
            sound(ground, answer, question.request)


@pytest.mark.parametrize("name", METHODS)
def test_bytes_that_are_no_request_are_refused_as_such(ground: Ground, name: str) -> None:
    for body in broken(b""):
        for who in ("admin", "stranger"):
            answer = ground.wire.call(METHODS[name], body, ground.metadata(who))
            sound(ground, answer)
            assert answer.reason == "MESSAGE_UNREADABLE", (body, answer)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_reader_does_not_know_is_passed_over(ground: Ground, name: str) -> None:
    for body in odd(b""):
        sound(ground, ground.wire.call(METHODS[name], body, ground.metadata("ada")))


@pytest.mark.parametrize("name", METHODS)
def test_a_huge_request_is_answered_or_refused_in_time(ground: Ground, name: str) -> None:
    for size in (MIB4 - 100, MIB4 + 1):
        for body in huge(METHODS[name], size):
            began = time.monotonic()
            answer = ground.wire.call(METHODS[name], body, ground.metadata("admin"))
            took = time.monotonic() - began
            sound(ground, answer)
            assert len(body) <= MIB4 or answer.reason == "MESSAGE_TOO_LARGE", answer
            assert took < HUGE_SECONDS_MAX, (body[:20], len(body), took)


def test_what_is_absurd_is_not_even_read(ground: Ground) -> None:
    for body in huge(METHODS["projects.v1.ProjectService.GetProject"], 5 * MIB4):
        method = METHODS["projects.v1.ProjectService.GetProject"]
        assert ground.wire.call(method, body, ground.metadata("admin")).code == "RESOURCE_EXHAUSTED"


HEADERS: Final = {
    "authorization": (
        *(
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "bearer a.b.c",
            "Basic YTpi",
            "Bearer " + "A" * 5000,
        ),
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
        "Bearer eyJhbGciOiJIUzI1NiIsImtpZCI6Ii4uLy4uLyJ9.e30.x",
    ),
    "fermion-after": (
        *(
            "",
            "=",
            ",",
            "projects/0",
            "projects/0=",
            "projects/0=-1",
            "projects/0=1e9",
            "projects/0=x",
        ),
        *("projects/0=" + "9" * 18, "none/0=5", "projects/0=1," * 300, "projects/0=" + "9" * 4000),
    ),
    "x-request-id": ("", " ", "x" * 4000, "%0d%0a", "';--"),
    "traceparent": (
        "",
        "00-",
        "00-" + "0" * 32 + "-" + "0" * 16 + "-00",
        "ff-" + "f" * 60,
        "x" * 3000,
    ),
    "x-unknown": ("x" * 4000,),
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_any_kind_are_read_or_refused(ground: Ground, header: str) -> None:
    for name in ("projects.v1.UserService.WhoAmI", "instances.v1.InstanceService.WatchInstances"):
        for text in HEADERS[header]:
            told = [one for one in ground.metadata("ada") if one[0] != header]
            answer = ground.wire.call(METHODS[name], b"", [*told, (header, text)])
            sound(ground, answer)


def test_the_platform_is_as_well_as_before(ground: Ground, process: Standing) -> None:
    now = ground.service()
    assert now.pid == process.pid, "it was started anew"

    def grown() -> int:
        # What the last big ones took is still being worked off, and asking moves it on.
        ground.stage.ok("whoami")
        return int(now.memory_info().rss) - process.bytes

    until(60, lambda: grown() < GROWTH_BYTES_MAX, lambda: f"it has {grown():,} bytes more")
    assert "Traceback" not in (ground.stage.home / "logs" / "all.log").read_text()
    ground.stage.audit()
    # The walk may have archived any project that it knew: a new one is as good as the first was.
    ground.stage.ok("projects", "create", "after")
    spec = ("--kind", "custom", "--cpu", "0.1", "--memory", "64Mi", "--", "true")
    ground.stage.ok("instances", "create", "last", "-p", "after", *spec)
    assert "last" in ground.stage.ok("instances", "list", "-p", "after").out
