"""What is wrong with a request is said in words, and no U+0000 gets past the door."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from protovalidate import Validator

from chassis.fields import (
    FAULTS_MAX,
    FIELDS_MAX,
    LARGE_BYTES,
    PARTS_MAX,
    faults,
    is_bounded,
    nul_fields,
    pattern_words,
    shown,
)
from fermion.api.instances import v1 as instances
from fermion.api.journal import v1 as journal
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload

NAMES = "lower-case letters, digits and '-', beginning with a letter and not ending with '-'"


def said(request: Message) -> dict[str, str]:
    """What is said of each field."""
    return {found.field: found.description for found in faults(request, Validator())}


def test_a_name_that_breaks_a_pattern_is_told_the_rule_in_words() -> None:
    assert said(projects.CreateUserRequest(user_id="A_")) == {
        "user_id": f"must be {NAMES}, at most 63"
    }
    assert said(instances.GetInstanceRequest(name="lab")) == {
        "name": "must be projects/{project}/instances/{instance}: "
        f"names of {NAMES}, at most 40 and 63"
    }
    asked = instances.CreateInstanceRequest(parent="projects/a", instance_id="a")
    asked.instance.spec.kind = instances.KIND_NOTEBOOK
    asked.instance.spec.template = "x"
    asked.instance.labels["team"] = "a b"
    assert said(asked) == {
        "instance.labels['team']": "must be letters, digits and `_.-`, at most 63",
        "instance.spec.template": "must be empty or templates/{template}: "
        f"names of {NAMES}, at most 63",
    }
    assert said(journal.ReadLogRequest(journal="x")) == {"journal": "must be {service}/{shard}"}


def test_a_choice_is_told_by_its_names() -> None:
    asked = projects.SetMemberRequest(parent="projects/a", user="users/a")
    roles = "ROLE_BILLING_VIEWER, ROLE_VIEWER, ROLE_EDITOR, ROLE_ADMIN"
    for role in (0, 77):
        asked.role = role  # type: ignore[assignment]
        assert said(asked) == {"role": f"must be one of {roles}"}
    assert shown(asked, "role") == ("77", "77")
    service = projects.User(platform_role=projects.PLATFORM_ROLE_SERVICE)
    asked_user = projects.CreateUserRequest(user_id="a", user=service)
    assert said(asked_user) == {
        "user.platform_role": "must be one of PLATFORM_ROLE_USER, PLATFORM_ROLE_ADMIN"
    }
    assert shown(asked_user, "user.platform_role")[1] == "PLATFORM_ROLE_SERVICE"
    order = "name, name desc, create_time, create_time desc"
    assert said(projects.ListProjectsRequest(order_by="age")) == {
        "order_by": f"must be one of {order}, or empty"
    }


def test_what_is_missing_too_much_or_too_many_is_said_so() -> None:
    assert said(projects.UpdateProjectRequest()) == {"project": "is required"}
    key = projects.SigningKey(public_key=bytes(32))
    assert said(projects.AddSigningKeyRequest(key=key)) == {"key.kid": "must not be empty"}
    project = projects.Project(labels={f"k{number}": "v" for number in range(33)})
    asked = projects.CreateProjectRequest(project_id="a", project=project)
    assert said(asked) == {"project.labels": "must have at most 32 entries"}


@pytest.mark.parametrize("letter", ["\x00", "\x07", "\x1b", "\x7f", "\x9b", "\u2028", "\n"])
def test_a_name_as_shown_is_one_line_without_control_characters(letter: str) -> None:
    project = projects.Project(display_name=f"a{letter}b")
    asked = projects.CreateProjectRequest(project_id="a", project=project)
    assert list(said(asked)) == ["project.display_name"]
    (found,) = faults(asked, Validator())
    assert found.rule == ("string.no_nul" if letter == "\0" else "string.pattern")


def test_a_description_may_have_lines_and_no_other_control_characters() -> None:
    project = projects.Project(description="one\n\ttwo\r\nдва 二 \U0001f469\u200d\U0001f4bb")
    asked = projects.CreateProjectRequest(project_id="a", project=project)
    assert said(asked) == {}
    project.description = "\x1b[2J"
    asked.project.CopyFrom(project)
    assert said(asked) == {
        "project.description": "must hold no control characters but line breaks and tabs"
    }


def test_a_value_is_shown_as_what_it_is() -> None:
    asked = projects.ListProjectsRequest(order_by="it's", page_size=-1)
    assert shown(asked, "order_by") == ("it's", '"it\'s"')
    assert shown(asked, "page_size") == ("-1", "-1")
    for path in ("", "nothing", "order_by.deeper"):
        assert shown(asked, path) == ("", "")


@pytest.mark.parametrize("pattern", ["^a+$", "^[0-9]{3}$", "^(a|[b-c])$", "^(a)(b)?$"])
def test_a_pattern_without_words_is_not_put_into_wrong_ones(pattern: str) -> None:
    assert pattern_words(pattern) is None


def test_a_nul_is_found_wherever_it_hides() -> None:
    request = instances.CreateInstanceRequest(parent="a\0b", instance_id="fine")
    request.instance.labels["team"] = "a\0b"
    request.instance.labels["k\0"] = "fine"
    request.instance.spec.ports.add(name="fine")
    request.instance.spec.ports.add(name="a\0b")
    found = [violation.field for violation in nul_fields(request)]
    assert sorted(found) == [
        "instance.labels['k\\x00']",
        "instance.labels['team']",
        "instance.spec.ports[1].name",
        "parent",
    ]


def test_bytes_may_hold_any_byte() -> None:
    key = projects.SigningKey(kid="k", public_key=bytes(32))
    assert list(nul_fields(projects.AddSigningKeyRequest(key=key))) == []


@pytest.mark.parametrize("nanos", [-1, 10**9])
def test_nanoseconds_that_are_none_are_named_wherever_they_hide(nanos: int) -> None:
    wrong = instances.GetInstanceRequest(name="projects/acme/instances/lab")
    wrong.as_of_time.nanos = nanos
    assert [one.field for one in faults(wrong, Validator())] == ["as_of_time"]
    deep = instances.CreateInstanceRequest(parent="projects/acme", instance_id="lab")
    deep.instance.spec.max_duration.seconds = 5
    deep.instance.spec.max_duration.nanos = nanos
    assert "instance.spec.max_duration" in [one.field for one in faults(deep, Validator())]


def test_of_very_many_faults_the_first_are_told_and_the_others_cost_nothing() -> None:
    asked = instances.Spec(ports=[workload.Port(name="_", number=0)] * 2_000)
    assert len(faults(asked, Validator())) == FAULTS_MAX
    large = instances.Spec(
        env=[workload.EnvVar(name="1", value="x" * 3_000)] * (LARGE_BYTES // 3_000 + 1)
    )
    assert [one.rule for one in faults(large, Validator())] == ["string.pattern"]


@pytest.mark.parametrize(
    "asked",
    [
        workload.Workload(groups=[workload.Group()] * (PARTS_MAX + 1)),
        workload.Workload(groups=[workload.Group(env=[workload.EnvVar()] * PARTS_MAX)]),
        workload.Workload(labels={str(number): "" for number in range(PARTS_MAX + 1)}),
        workload.Workload(groups=[workload.Group(args=[""] * FIELDS_MAX)]),
    ],
)
def test_bytes_of_more_parts_than_can_be_looked_at_are_known_before_they_are_read(
    asked: workload.Workload,
) -> None:
    assert not is_bounded(asked.DESCRIPTOR, asked.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        workload.Workload(groups=[workload.Group()] * PARTS_MAX).SerializeToString(),
        workload.Workload(owner="x" * 4_000_000).SerializeToString(),
        b"\xff" * 4_000_000,
        b"\x52\xff\xff\xff\xff\x7f",
        b"",
    ],
)
def test_bytes_of_few_parts_are_read_whatever_they_are(data: bytes) -> None:
    assert is_bounded(workload.Workload.DESCRIPTOR, data)
