"""What a restored cluster begins with: records that have ended, and volumes that are there."""

from __future__ import annotations

import os
from pathlib import Path

from services.executor import keeping, sentences, shim
from services.executor.keeping import Settled
from tests.unit.services.executor.test_ground import replica

VOLUMES = tuple(f"vol_{number}" for number in range(3))
SPEC = shim.words([("uid", "rep_1"), ("segment_bytes", "4096"), ("log_bytes_max", "9000")])


def kept(root: Path, name: str, *, open_run: bool = False, **other: int | str) -> Path:
    """A replica's folder as it comes out of a backup."""
    replica(root, name, **other)
    folder = root / "replicas" / name
    (folder / "spec").write_bytes(SPEC)
    if open_run:
        start = shim.Start(0, 1, 1, "boot", 1000, 0, 0)
        with (folder / "record").open("r+b") as file:
            file.seek(shim.run_place(0))
            file.write(start.pack(shim.START_BYTES))
    return folder


def read(folder: Path) -> shim.Record:
    found = shim.read_record(str(folder))
    assert found is not None
    return found


def test_an_open_run_ends_at_its_last_proof_of_life(tmp_path: Path) -> None:
    folder = kept(tmp_path, "runs", open_run=True, runs=1, proof=5000)
    assert keeping.settle(tmp_path, ()) == Settled(ended=1, empty=0)
    record = read(folder)
    ((start, end),) = record.runs
    assert end is not None
    assert (start.at, end.at, end.evidence, end.signal) == (1000, 5000, shim.LAST_PROOF, 9)
    assert (record.head.phase, record.head.proof) == (shim.ENDED, 5000)
    reason = sentences.of_run(end.reason, end.detail, 0)
    assert reason is not None
    assert reason.code == "RESTORED"
    # Once more changes nothing.
    before = (folder / "record").read_bytes()
    assert keeping.settle(tmp_path, ()) == Settled(ended=0, empty=0)
    assert (folder / "record").read_bytes() == before


def test_a_run_that_was_never_proved_alive_has_no_length(tmp_path: Path) -> None:
    folder = kept(tmp_path, "begun", open_run=True, runs=1, proof=10)
    keeping.settle(tmp_path, ())
    end = read(folder).runs[0][1]
    assert end is not None
    assert end.at == 1000


def test_what_waits_to_run_never_will_and_what_has_ended_is_as_it_was(tmp_path: Path) -> None:
    waits = kept(tmp_path, "waits", phase=shim.PREPARING, reason="GPUS_TAKEN")
    ended = kept(tmp_path, "ended", phase=shim.ENDED, proof=7)
    before = (ended / "record").read_bytes()
    assert keeping.settle(tmp_path, ()).ended == 1
    head = read(waits).head
    assert (head.phase, head.reason) == (shim.ENDED, "RESTORED")
    said = sentences.of_waiting(head.reason, head.detail, {})
    assert said is not None
    assert said.code == "RESTORED"
    assert (ended / "record").read_bytes() == before


def test_all_that_it_printed_is_known_at_the_end(tmp_path: Path) -> None:
    folder = kept(tmp_path, "prints", open_run=True, runs=1)
    log = shim.Log(str(folder / "logs"), 4096, 9000)
    log.write(1, 1, 0, b"hello")
    log.close()
    keeping.settle(tmp_path, ())
    assert read(folder).head.printed == 5


def test_what_never_began_or_cannot_be_read_is_made_anew_by_who_wants_it(tmp_path: Path) -> None:
    (tmp_path / "replicas" / "logs-only" / "logs").mkdir(parents=True)
    replica(tmp_path, "no-spec")
    damaged = kept(tmp_path, "damaged")
    (damaged / "record").write_bytes(b"x" * shim.HEAD_BYTES)
    assert keeping.settle(tmp_path, ()) == Settled(ended=0, empty=0)
    assert os.listdir(tmp_path / "replicas") == []


def test_what_was_forgotten_while_it_was_packed_is_there_once(tmp_path: Path) -> None:
    folder = kept(tmp_path, "twice", phase=shim.ENDED)
    (tmp_path / "kept" / "rep_1" / "logs").mkdir(parents=True)
    keeping.settle(tmp_path, ())
    assert folder.exists()
    assert os.listdir(tmp_path / "kept") == []


def test_there_are_the_volumes_that_there_are_facts_of_and_no_others(tmp_path: Path) -> None:
    one, two, other = VOLUMES
    for name in (one, other):
        (tmp_path / "volumes" / name / "data").mkdir(parents=True)
    (tmp_path / "volumes" / one / "data" / "note").write_text("kept")
    assert keeping.settle(tmp_path, (one, two)) == Settled(ended=0, empty=1)
    assert sorted(os.listdir(tmp_path / "volumes")) == [one, two]
    assert (tmp_path / "volumes" / one / "data" / "note").read_text() == "kept"
    assert int(os.readlink(tmp_path / "volumes" / two / "since")) > 0


def test_a_record_is_kept_of_one_moment_and_one_that_is_never_whole_is_left_out(
    tmp_path: Path,
) -> None:
    folder = kept(tmp_path, "runs")
    damaged = kept(tmp_path, "damaged")
    (damaged / "record").write_bytes(b"x" * shim.HEAD_BYTES)
    (tmp_path / "replicas" / ".new").mkdir()
    assert list(keeping.records(tmp_path)) == [(folder, (folder / "record").read_bytes())]


def test_control_groups_have_the_clusters_uid_and_after_a_restore_a_name_of_their_own(
    tmp_path: Path,
) -> None:
    assert keeping.group_name(tmp_path, "uid") == "uid"
    keeping.settle(tmp_path, ())
    first = keeping.group_name(tmp_path, "uid")
    assert first.startswith("uid-")
    keeping.settle(tmp_path, ())
    assert keeping.group_name(tmp_path, "uid") == first
