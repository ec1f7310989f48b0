"""What others wrote is shown, and never obeyed by a terminal."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import yaml
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import run, show, text
from fermion.context import Contexts
from tests.unit.fermion.platform import Platform, refuse

# Sets the title of the window, clears the screen, is one character of eight bits, turns the line
# round, ends it, and rings.
EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2028b\r\nerror: c\x7f"
NAME = "projects/acme/instances/lab"


@pytest.fixture
def evil(platform: Platform, tmp_path: Path) -> Platform:
    """A platform where every text that somebody else may write is made to be obeyed."""
    token = tmp_path / "jwt"
    token.write_text("jwt")
    Contexts().set("local", address=platform.address, token_file=str(token), project="acme")
    reason = workload.Reason(code="EVIL", message=EVIL, arguments={EVIL: EVIL})
    shown = api.Instance(
        name=NAME,
        uid="inst_" + "a" * 26,
        display_name=EVIL,
        description=EVIL,
        labels={"team": EVIL},
        owner=EVIL,
        spec=api.Spec(image=EVIL, command=[EVIL], env=[workload.EnvVar(name="A", value=EVIL)]),
        status=api.Status(state=api.STATE_FAILED, reason=reason, addresses={EVIL: EVIL}),
    )
    platform.instances[NAME] = shown
    created = api.InstanceCreated(uid=shown.uid, instance="lab", display_name=EVIL)
    stream = f"instance/{shown.uid}"
    platform.state("instances/0", stream, created, 100).meta.actor = EVIL
    failed = api.InstanceFailed(uid=shown.uid, reason=reason)
    platform.state("instances/0", stream, failed, 101)
    return platform


def obeyed(printed: str) -> set[str]:
    """Characters that are more than what is read; ends of lines are ours."""
    controls = {c for c in printed if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
    return controls - {"\n"}


@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml", "name"])
@pytest.mark.parametrize(
    "words",
    [
        ["instances", "list"],
        ["instances", "get", "lab"],
        ["events", "list", "lab"],
        ["events", "list"],
        ["instances", "create", "own", "--kind", "custom", "--description", EVIL, "--dry-run"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_command_prints_what_a_terminal_obeys(
    evil: Platform, capsys: pytest.CaptureFixture[str], words: list[str], output: str
) -> None:
    assert run([*words, "-o", output]) == 0
    printed = capsys.readouterr()
    assert obeyed(printed.out) | obeyed(printed.err) == set()
    if output in ("table", "wide"):
        assert "\nerror:" not in printed.out


def test_a_watch_prints_nothing_that_a_terminal_obeys(
    evil: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in ("table", "json", "yaml", "name"):
        evil.watches.append([api.WatchInstancesResponse(change=1, instance=evil.instances[NAME])])
        evil.watches.append([])
        evil.turns.extend([lambda _: None, refuse(code_pb2.OUT_OF_RANGE, "END")])
        assert run(["instances", "watch", "-o", output]) == 5
        printed = capsys.readouterr()
        assert "lab" in printed.out
        assert obeyed(printed.out) == set()
        evil.watches.clear()


def test_programs_read_what_was_written(evil: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["instances", "get", "lab", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["description"] == EVIL
    assert run(["instances", "get", "lab", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["description"] == EVIL


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_refusal_is_shown_and_not_obeyed(
    evil: Platform, capsys: pytest.CaptureFixture[str], debug: list[str]
) -> None:
    violations = ((EVIL, EVIL),)
    turn = refuse(
        code_pb2.INVALID_ARGUMENT, "EVIL", EVIL, violations=violations, next_step=EVIL, a=EVIL
    )
    evil.turns.append(turn)
    assert run(["instances", "get", "lab", *debug]) == 2
    printed = capsys.readouterr()
    assert obeyed(printed.err) == set()
    assert r"a\x1b]0;owned" in printed.err


def test_what_the_shell_is_offered_is_not_obeyed(
    evil: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    evil.instances[f"{NAME}2"] = api.Instance(name=f"projects/acme/instances/{EVIL}")
    assert run(["__complete", "instances", "get", ""]) == 0
    # The parser's own marks stand at the beginning of their lines.
    lines = [line for line in capsys.readouterr().out.split("\n") if not line.startswith("\x1f")]
    assert "lab" in lines
    assert obeyed("".join(lines)) - {"\t"} == set()


def test_a_finding_of_the_doctor_is_not_obeyed(
    evil: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    evil.turns.append(refuse(code_pb2.INTERNAL, "EVIL", EVIL, next_step=EVIL))
    assert run(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert r"whoami: a\x1b" in printed
    assert obeyed(printed) == set()


@given(st.text())
def test_what_is_harmless_is_shown_as_it_is(said: str) -> None:
    assert obeyed(text.line(said)) <= {c for c in said if unicodedata.category(c) == "Cf"}
    assert "\n" not in text.line(said)
    if said.isprintable() and text.harmless(said):
        assert text.line(said) == said
    assert json.loads(show.to_json(said)) == said
    assert text.lines("a\nb") == "a\nb"
