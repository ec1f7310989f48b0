"""The place of a backup: it becomes the target when all went well, and is nowhere otherwise."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from chassis.embedded import Home
from chassis.refusals import Refused
from services.backup import placed
from services.restore import taken
from services.versions import known_migrations


class Broken(Exception):
    """Something went wrong in between."""


def test_a_place_becomes_the_target_with_all_that_was_put_into_it(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with placed(target) as place:
        (place / "one").write_text("one")
        assert not target.exists()
    assert os.listdir(tmp_path) == ["backup"]
    assert (target / "one").read_text() == "one"
    assert target.stat().st_mode & 0o777 == 0o700
    with pytest.raises(Refused) as refused, placed(target):
        raise AssertionError("it replaces nothing")
    assert refused.value.reason == "BACKUP_EXISTS"


def test_two_at_once_are_refused_and_the_first_one_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with placed(target) as place:
        (place / "one").write_text("one")
        with pytest.raises(Refused) as refused, placed(target):
            raise AssertionError("somebody else writes it")
        assert refused.value.reason == "BACKUP_RUNS"
        assert (place / "one").exists()
    assert os.listdir(target) == ["one"]


def test_what_fails_leaves_nothing_and_what_was_killed_is_taken_away(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with suppress(Broken), placed(target) as place:
        (place / "half").write_text("half")
        raise Broken
    assert os.listdir(tmp_path) == []
    place.mkdir()
    (place / "half").write_text("half")
    with placed(target) as place:
        assert os.listdir(place) == []
    assert os.listdir(tmp_path) == ["backup"]


def test_a_folder_that_is_being_restored_is_whole_only_at_the_end(tmp_path: Path) -> None:
    home, backup = Home(tmp_path / "home"), tmp_path / "backup"
    with suppress(Broken), taken(home, backup):
        assert home.restored_from() == str(backup)
        home.path("half").mkdir()
        raise Broken
    with pytest.raises(Refused) as refused:
        home.whole()
    assert refused.value.reason == "RESTORE_UNFINISHED"
    assert f"fermion restore {backup} --home {home.root}" in refused.value.next_step
    with taken(home, backup):
        assert not home.path("half").exists()
    home.whole()
    home.path("mine").touch()
    with pytest.raises(Refused) as refused, taken(home, backup):
        raise AssertionError("it is not empty")
    assert refused.value.reason == "HOME_NOT_EMPTY"


def test_a_folder_in_use_is_not_restored_into(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.own()
    home.hold("127.0.0.1:1")
    with pytest.raises(Refused) as refused, taken(Home(home.root), tmp_path / "backup"):
        raise AssertionError("somebody holds it")
    assert refused.value.reason == "HOME_HELD"
    home.release()


def test_every_migration_of_this_release_is_known() -> None:
    found = known_migrations()
    assert "0003_restore" in found["projects"] & found["billing"]
    assert "0002_metered" in found["billing_rows"]
