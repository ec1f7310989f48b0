"""Contexts, what overrides them, and the positions that are kept for them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fermion.context import LOCAL, Context, Contexts, StoredPositions, resolve
from fermion.errors import Error, FailedPrecondition, InvalidArgument, NotFound


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, and no variable that overrides it."""
    for name in ("FERMION_CONTEXT", "FERMION_ADDRESS", "FERMION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FERMION_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cli"


@pytest.fixture
def two(folder: Path, tmp_path: Path) -> Path:
    """Two contexts; the first one is in use."""
    token = tmp_path / "jwt"
    token.write_text("of-prod\n")
    contexts = Contexts()
    contexts.set("prod", address="prod:1", token_file=str(token), project="acme")
    contexts.set("split", address="s:1", addresses={"instances": "s:2"})
    contexts.current = "prod"
    contexts.save()
    return folder


def test_without_a_file_the_local_platform_is_called(folder: Path) -> None:
    assert resolve().address == LOCAL


def test_the_current_context_says_where_as_whom_and_on_what(two: Path) -> None:
    found = resolve()
    assert (found.address, found.bearer(), found.project) == ("prod:1", "of-prod", "acme")


def test_a_service_is_called_where_it_answers(two: Path) -> None:
    found = resolve("split")
    assert (found.address_of("instances"), found.address_of("projects")) == ("s:2", "s:1")


def test_several_processes_of_a_service_are_tried_in_turn(folder: Path) -> None:
    contexts = Contexts()
    contexts.set(
        "two",
        address="10.0.0.1:1,10.0.0.2:1",
        addresses={"instances": "[::1]:2,[::1]:3", "scheduler": "10.0.0.9:4"},
        token="s3cret",
    )
    found = contexts.find("two")
    assert (found.address, found.address_of("instances")) == ("10.0.0.1:1", "[::1]:2")
    assert found.target_of("projects") == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert found.target_of("instances") == "ipv6:[::1]:2,[::1]:3"
    assert found.target_of("scheduler") == "10.0.0.9:4"


def test_several_processes_in_a_variable_get_a_contexts_token_only_where_all_are_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Contexts().set("local", address="10.0.0.1:1,10.0.0.2:1", token="s3cret")
    monkeypatch.setenv("FERMION_ADDRESS", "10.0.0.2:1,10.0.0.1:1")
    assert (resolve().target_of("x"), resolve().bearer()) == (
        "ipv4:10.0.0.2:1,10.0.0.1:1",
        "s3cret",
    )
    for said in ("10.0.0.1:1,10.0.0.3:1", "10.0.0.3:1"):
        monkeypatch.setenv("FERMION_ADDRESS", said)
        assert resolve().bearer() == ""
    monkeypatch.setenv("FERMION_ADDRESS", "10.0.0.1:1")
    monkeypatch.setenv("FERMION_ADDRESS_INSTANCES", "10.0.0.3:1,10.0.0.1:1")
    assert resolve().bearer() == ""
    assert resolve().target_of("instances") == "ipv4:10.0.0.3:1,10.0.0.1:1"


def test_a_variable_chooses_a_context_and_an_option_wins_over_it(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMION_CONTEXT", "split")
    assert resolve().name == "split"
    assert resolve("prod").name == "prod"


def test_a_token_of_a_context_is_not_sent_to_another_address(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMION_ADDRESS", "elsewhere:1")
    assert resolve().bearer() == ""
    monkeypatch.setenv("FERMION_TOKEN", "of-elsewhere")
    assert resolve().bearer() == "of-elsewhere"
    monkeypatch.delenv("FERMION_TOKEN")
    monkeypatch.setenv("FERMION_ADDRESS", "prod:1")
    assert resolve().bearer() == "of-prod"


def test_variables_do_not_touch_a_context_that_is_asked_for_by_name(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERMION_ADDRESS", "elsewhere:1")
    monkeypatch.setenv("FERMION_TOKEN", "of-elsewhere")
    found = resolve("prod")
    assert (found.address, found.bearer()) == ("prod:1", "of-prod")


def test_a_token_does_not_show_in_a_traceback(two: Path) -> None:
    assert "s3cret" not in repr(resolve(token="s3cret"))


@pytest.mark.parametrize(
    "address",
    [
        *("prod", "prod:", ":1", "prod:0", "prod:99999", "http://a:1"),
        *(
            "prod:1,prod:2",
            "10.0.0.1:1,prod:2",
            "10.0.0.1:1,[::1]:2",
            "10.0.0.1:1,",
            "10.0.0.1:1,2",
        ),
    ],
)
def test_what_is_no_address_is_refused(two: Path, address: str) -> None:
    with pytest.raises(InvalidArgument):
        resolve(address=address)


def test_a_context_that_is_not_there_names_those_that_are(two: Path) -> None:
    with pytest.raises(NotFound, match="local, prod, split"):
        resolve("prd")


def test_the_file_is_its_owners_alone(two: Path) -> None:
    assert stat.S_IMODE((two / "contexts.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(two.stat().st_mode) == 0o700
    assert stat.S_IMODE(two.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"contexts": []}', '{"contexts": {"a": 1}}'])
def test_a_file_that_cannot_be_read_is_left_as_it_is(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "contexts.json").write_text(text)
    with pytest.raises(FailedPrecondition, match=r"contexts\.json") as caught:
        Contexts().set("new", address="a:1")
    assert isinstance(caught.value, Error)
    assert (folder / "contexts.json").read_text() == text


def test_what_the_platform_wrote_into_a_context_stays_when_it_is_changed(folder: Path) -> None:
    folder.mkdir(parents=True)
    written = {"current": "local", "contexts": {"local": {"address": "127.0.0.1:5", "new": 1}}}
    (folder / "contexts.json").write_text(json.dumps(written))
    Contexts().set("local", project="acme")
    kept = json.loads((folder / "contexts.json").read_text())["contexts"]["local"]
    assert kept == {"address": "127.0.0.1:5", "new": 1, "project": "acme"}


def test_positions_outlive_the_process_by_context(folder: Path) -> None:
    one, other = Context("one", "a:1"), Context("other", "a:2")
    StoredPositions(one).remember({"instances/0": 7, "projects/0": 2})
    StoredPositions(one).remember({"instances/0": 5})
    assert StoredPositions(one).newest() == {"instances/0": 7, "projects/0": 2}
    assert StoredPositions(other).newest() == {}
    StoredPositions(one).forget()
    assert StoredPositions(one).newest() == {}


def test_positions_of_a_context_that_moved_are_not_sent_to_the_new_place(folder: Path) -> None:
    StoredPositions(Context("local", "a:1")).remember({"instances/0": 7})
    assert StoredPositions(Context("local", "a:2")).newest() == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"one a:1": {"instances/0": 7}}', '{"one a:1": 4}']
)
def test_positions_that_cannot_be_read_are_as_none(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "positions.json").write_text(text)
    positions = StoredPositions(Context("one", "a:1"))
    assert positions.newest() == {}
    positions.remember({"instances/0": 7})
    assert positions.newest() == {"instances/0": 7}
