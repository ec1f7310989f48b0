"""A backup's own files: what is packed while it changes, and what is refused when it is read."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from chassis.embedded.bundle import (
    DATABASE,
    FILES,
    FORMAT,
    MANIFEST,
    SMALL_BYTES_MAX,
    JournalKept,
    Manifest,
    Pack,
    Steady,
    seal,
    unknown,
    unpack,
)
from chassis.refusals import Refused


def manifest(folder: Path) -> Manifest:
    for name in (DATABASE, FILES):
        (folder / name).write_bytes(name.encode())
    return Manifest(
        uid="backup_1",
        made="2026-11-26T00:00:00.000+00:00",
        version="0.1.0",
        postgres=18,
        cluster="c" * 26,
        journals=(JournalKept("a/0", 1, 3), JournalKept("b/0", 2, 4)),
        migrations={"a": ("0001_a",)},
        with_files=True,
        seals={name: seal(folder / name) for name in (DATABASE, FILES)},
    )


def test_a_manifest_is_read_as_it_was_written_and_tells_when_a_file_is_another(
    tmp_path: Path,
) -> None:
    written = manifest(tmp_path)
    written.write(tmp_path)
    found = Manifest.read(tmp_path)
    assert found == written
    assert found.facts == 7
    assert (tmp_path / MANIFEST).stat().st_mode & 0o777 == 0o600
    found.check(tmp_path)
    for spoilt in (b"x", b""):
        (tmp_path / DATABASE).write_bytes(spoilt)
        with pytest.raises(Refused) as refused:
            found.check(tmp_path)
        assert refused.value.reason == "BACKUP_DAMAGED"
    (tmp_path / FILES).unlink()
    with pytest.raises(Refused, match="is damaged"):
        found.check(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "journals": 3}', '{"format": "x"}']
)
def test_what_is_no_manifest_is_no_backup(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(Refused) as refused:
        Manifest.read(tmp_path)
    assert refused.value.reason == "BACKUP_UNREADABLE"


def test_a_manifest_of_a_later_format_and_migrations_of_a_later_release_are_told(
    tmp_path: Path,
) -> None:
    manifest(tmp_path).write(tmp_path)
    said = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**said, "format": FORMAT + 1}))
    with pytest.raises(Refused) as refused:
        Manifest.read(tmp_path)
    assert refused.value.reason == "BACKUP_NEWER"
    assert unknown({"a": ["1", "2"], "b": ["1"]}, {"a": {"1"}}) == ["a/2", "b/1"]


def test_what_is_packed_comes_out_as_it_was(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "large").write_bytes(os.urandom(2 * SMALL_BYTES_MAX))
    (inside / "program").write_text("#!/bin/sh")
    (inside / "program").chmod(0o755)
    (inside / "away").symlink_to("/nowhere")
    (inside / "apart").write_text("left out")
    os.mkfifo(inside / "bell")
    pack = Pack(tmp_path / FILES)
    pack.add(inside, "in", apart=frozenset({"apart"}))
    pack.add(tmp_path / "missing", "missing")
    pack.put("said", b"said")
    pack.close()
    assert (tmp_path / FILES).stat().st_mode & 0o777 == 0o600
    out = tmp_path / "out"
    out.mkdir()
    unpack(tmp_path / FILES, out)
    assert sorted(os.listdir(out)) == ["in", "said"]
    assert sorted(os.listdir(out / "in")) == ["away", "deep", "program"]
    assert (out / "in" / "deep" / "large").read_bytes() == (inside / "deep" / "large").read_bytes()
    assert (out / "in" / "program").stat().st_mode & 0o777 == 0o755
    assert os.readlink(out / "in" / "away") == "/nowhere"


def test_a_file_that_has_become_shorter_goes_on_with_zeros() -> None:
    file = Steady(io.BytesIO(b"four"))
    assert [file.read(3), file.read(3), file.read(3)] == [b"fou", b"r\0\0", b"\0\0\0"]


def hostile(folder: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(folder / FILES, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return folder / FILES


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return found


def test_nothing_is_unpacked_elsewhere_than_into_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for members in (
        (member("../beside"),),
        (member("/beside"),),
        (member("in/../../beside"),),
        (member("link", tarfile.SYMTYPE, str(tmp_path)), member("link/beside")),
        (member("device", tarfile.CHRTYPE),),
        (member("hard", tarfile.LNKTYPE, "/etc/passwd"),),
    ):
        out.mkdir()
        with pytest.raises(Refused) as refused:
            unpack(hostile(tmp_path, *members), out)
        assert refused.value.reason == "BACKUP_DAMAGED"
        assert not (tmp_path / "beside").exists()
        for left in out.iterdir():
            left.unlink()
        out.rmdir()
